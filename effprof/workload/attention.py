"""Attention counted by the pairs its mask leaves, whoever wrote it: torch's SDPA, nn.MultiheadAttention, transformers.

While a count runs, attention is not taken apart into the operations of whichever kernel torch would choose: it is
replaced by `_Attention`, which has the right shapes forward and backward and books the FLOPs of the attended pairs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from effprof.workload.counter import (
    UNKNOWN_MASK,
    AttentionShape,
    OperationCounter,
    causal_pairs,
    expect,
    is_in_backward,
    product_dtype,
)
from effprof.workload.known_values import KnownValues
from effprof.workload.written_attention import WrittenAttention

_running: list[AttentionMode] = []
_lock = threading.Lock()


class _Attention(torch.autograd.Function):
    """Softmax(QKᵀ)V in shapes only. Two matrix products forward; backward two per gradient chain that is needed."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        counter: OperationCounter,
        shape: AttentionShape,
        recompute: bool,
    ) -> torch.Tensor:
        ctx.counter, ctx.shape = counter, shape
        rows = prod(query.shape[:-2]) * shape.pairs
        counter.add_attention(
            "attention", 2 * rows * (query.shape[-1] + value.shape[-1]), query, shape, recompute=recompute
        )
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        # what a fused kernel keeps: checkpointing runs the forward again up to the last kept tensor
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        query, key, value, _ = ctx.saved_tensors
        needs_query, needs_key, needs_value = ctx.needs_input_grad[:3]
        rows = prod(query.shape[:-2]) * ctx.shape.pairs
        # dV = PᵀdO; dP = dO Vᵀ leads to dQ = dS K and dK = dSᵀ Q
        flops = 2 * rows * value.shape[-1] * (int(needs_value) + int(needs_query or needs_key))
        flops += 2 * rows * query.shape[-1] * (int(needs_query) + int(needs_key))
        ctx.counter.add_attention("attention_backward", flops, query, ctx.shape, recompute=False)
        gradients = [
            tensor.new_empty(tensor.shape) if needed else None
            for tensor, needed in zip((query, key, value), ctx.needs_input_grad[:3], strict=True)
        ]
        return (*gradients, None, None, None)


def attend(
    counter: OperationCounter,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pairs: int,
    window: int | None = None,
    is_cross: bool = False,
) -> torch.Tensor:
    """Attention output (…, H, T, Dv) of `query` (…, H, T, D) over `pairs` pairs of each sequence and head."""
    query, key, value = (tensor.to(product_dtype(tensor)) for tensor in (query, key, value))
    batch = int(query.shape[0]) if query.dim() > 2 else 1
    shape = AttentionShape(batch, int(query.shape[-2]), int(key.shape[-2]), pairs, window, is_cross)
    result: torch.Tensor = _Attention.apply(query, key, value, counter, shape, counter.is_recomputing())  # type: ignore[no-untyped-call]
    return result


class AttentionMode(TorchFunctionMode):
    """Routes every attention that torch offers to `attend`."""

    def __init__(self, counter: OperationCounter) -> None:
        super().__init__()
        self.counter = counter
        self.known = KnownValues()
        self.written = WrittenAttention(counter, self.known)
        counter.value_of = self.known.value_of

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self.scaled_dot_product_attention(*args, **kwargs)
        if func is torch.nn.functional.multi_head_attention_forward:
            return self._multi_head_attention(*args, **kwargs)
        if func in _GRADIENTS:
            before, self.counter.differentiates_twice = (
                self.counter.differentiates_twice,
                bool(kwargs.get("create_graph")),
            )
            try:
                return func(*args, **kwargs)
            finally:
                self.counter.differentiates_twice = before
        out = func(*args, **kwargs)
        if func in _FINITE:
            expect(out, True)
        self.known.follow(func, args, kwargs, out)
        self.written.follow(func, args, kwargs, out)
        return out

    def scaled_dot_product_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """What `F.scaled_dot_product_attention` answers, in shapes."""
        queries, keys = int(query.shape[-2]), int(key.shape[-2])
        pairs, window = (causal_pairs(queries, keys) if is_causal else queries * keys), None
        if attn_mask is not None:
            is_additive = attn_mask.is_floating_point()
            pairs, window = self.pairs_left(attn_mask, queries, keys, is_additive=is_additive, marks_attended=True)
        return attend(self.counter, query, key, value, pairs, window)

    def pairs_left(
        self, mask: torch.Tensor, queries: int, keys: int, *, is_additive: bool, marks_attended: bool
    ) -> tuple[int, int | None]:
        """(pairs, window) that a mask tensor leaves; all, and an assumption, where its values are not known."""
        told: tuple[int, int | None] | None = self.written.pairs_of_mask(
            mask, queries, keys, is_additive=is_additive, marks_attended=marks_attended
        )
        if told is None:
            self.counter.assume(UNKNOWN_MASK)
            return queries * keys, None
        return told

    def _multi_head_attention(self, *args: Any, **kwargs: Any) -> Any:
        functional = torch.nn.functional
        wants_weights, averages = bool(kwargs.get("need_weights", True)), kwargs.get("average_attn_weights", True)
        kwargs["need_weights"] = False
        original = functional.scaled_dot_product_attention
        mask = kwargs.get("attn_mask")
        lengths = args[0].shape[0], args[1].shape[0]  # (T, B, h): the module has transposed its inputs
        told = None
        if mask is not None:
            told = self.pairs_left(mask, *lengths, is_additive=mask.is_floating_point(), marks_attended=False)

        def counted(query: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
            # other threads may be in the same function with real tensors
            if not isinstance(query, FakeTensor):
                return original(query, *rest, **named)
            if told is not None:
                return attend(self.counter, query, rest[0], rest[1], *told)
            return self.scaled_dot_product_attention(query, *rest, **named)

        functional.scaled_dot_product_attention = counted
        try:
            output, weights = functional.multi_head_attention_forward(*args, **kwargs)
        finally:
            functional.scaled_dot_product_attention = original
        if wants_weights:
            query, heads = args[0], args[4]
            batch = (query.shape[1],) if query.dim() == 3 else ()
            weights = query.new_empty((*batch, *lengths) if averages else (*batch, heads, *lengths))
        return output, weights

    def follow_into_recomputation(self, module: torch.nn.Module) -> None:
        """Enter this mode again in forwards that checkpointing repeats: the autograd engine drops function modes."""
        entered: list[torch.nn.Module] = []

        def enter(part: torch.nn.Module, _: Any) -> None:
            if is_in_backward() and not torch._C._len_torch_function_stack():
                self.__enter__()  # type: ignore[no-untyped-call]
                entered.append(part)

        def leave(part: torch.nn.Module, *_: Any) -> None:
            if entered and entered[-1] is part:
                entered.pop()
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        for part in module.modules():
            part.register_forward_pre_hook(enter)
            part.register_forward_hook(leave, always_call=True)


_GRADIENTS = {torch.Tensor.backward, torch.autograd.grad}
_FINITE = {torch.isfinite, torch.Tensor.isfinite}


@contextmanager
def counting_attention(counter: OperationCounter, module: torch.nn.Module | None) -> Iterator[None]:
    """Route attention to `counter` inside: torch's own, and that of transformers' models prepared for it.

    `module` is the copy that is run; its forwards are followed into the backward pass.
    """
    mode = AttentionMode(counter)
    if module is not None:
        mode.follow_into_recomputation(module)
    with _lock:
        _running.append(mode)
    try:
        with mode:
            yield
    finally:
        with _lock:
            _running.remove(mode)


def running_mode() -> AttentionMode:
    """The mode of the count that is running; for functions that libraries call back."""
    return _running[-1]


def _nested_configs(config: Any) -> Iterator[Any]:
    if config is None or not hasattr(config, "to_dict"):
        return
    yield config
    for value in list(vars(config).values()):
        if value is not config and hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _nested_configs(value)
