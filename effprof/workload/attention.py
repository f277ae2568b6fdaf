"""Attention counted by the pairs its mask leaves, whoever wrote it: torch's SDPA, nn.MultiheadAttention, transformers.

While a count runs, attention is not taken apart into the operations of whichever kernel torch would choose: it is
replaced by `_Attention`, which has the right shapes forward and backward and books the FLOPs of the attended pairs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from effprof.workload.counter import (
    AttentionShape,
    OperationCounter,
    causal_pairs,
    expect,
    is_in_backward,
    window_pairs,
)

HF_NAME = "effprof_count"
# A mask function that is no known pattern is evaluated in blocks of rows, so that it needs little memory.
_ROWS_AT_ONCE = 512
_active: list[OperationCounter] = []
_active_lock = threading.Lock()


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
    query, key, value = (_autocast(tensor) for tensor in (query, key, value))
    batch = int(query.shape[0]) if query.dim() > 2 else 1
    shape = AttentionShape(batch, int(query.shape[-2]), int(key.shape[-2]), pairs, window, is_cross)
    result: torch.Tensor = _Attention.apply(query, key, value, counter, shape, counter.is_recomputing())  # type: ignore[no-untyped-call]
    return result


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """Autocast runs attention in its lower precision, whatever precision the projections' outputs were turned into."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind) and tensor.dtype == torch.float32:
        return tensor.to(torch.get_autocast_dtype(kind))
    return tensor


class AttentionMode(TorchFunctionMode):
    """Routes every attention that torch offers to `attend`."""

    def __init__(self, counter: OperationCounter) -> None:
        super().__init__()
        self.counter = counter

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
        pairs = causal_pairs(queries, keys) if is_causal else queries * keys
        if attn_mask is not None:
            self.counter.assume("an attention mask given as a tensor was taken to leave every pair")
        return attend(self.counter, query, key, value, pairs)

    def _multi_head_attention(self, *args: Any, **kwargs: Any) -> Any:
        functional = torch.nn.functional
        wants_weights, averages = bool(kwargs.get("need_weights", True)), kwargs.get("average_attn_weights", True)
        kwargs["need_weights"] = False
        original = functional.scaled_dot_product_attention

        def counted(query: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
            # other threads may be in the same function with real tensors
            chosen = self.scaled_dot_product_attention if isinstance(query, FakeTensor) else original
            return chosen(query, *rest, **named)

        functional.scaled_dot_product_attention = counted
        try:
            output, weights = functional.multi_head_attention_forward(*args, **kwargs)
        finally:
            functional.scaled_dot_product_attention = original
        if wants_weights:
            query, key, heads = args[0], args[1], args[4]
            batch = (query.shape[1],) if query.dim() == 3 else ()
            lengths = (query.shape[0], key.shape[0])
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
    with _active_lock:
        _active.append(counter)
    try:
        with mode:
            yield
    finally:
        with _active_lock:
            _active.remove(counter)


def prepare_transformers(module: torch.nn.Module) -> None:
    """Make every transformers model inside `module` (a copy) count its attention and run its experts without a loop.

    Does nothing where transformers was never imported, or is too old to have the two interfaces.
    """
    if "transformers" not in sys.modules:
        return
    if not _register_in_transformers():
        return
    seen: set[int] = set()
    for part in module.modules():
        config = getattr(part, "config", None)
        for each in _nested_configs(config):
            if id(each) not in seen and hasattr(each, "_attn_implementation"):
                seen.add(id(each))
                each._attn_implementation_internal = HF_NAME
                if hasattr(each, "_experts_implementation"):
                    each._experts_implementation_internal = "batched_mm"


def _nested_configs(config: Any) -> Iterator[Any]:
    if config is None or not hasattr(config, "to_dict"):
        return
    yield config
    for value in list(vars(config).values()):
        if value is not config and hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _nested_configs(value)


def _register_in_transformers() -> bool:
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError:
        return False
    AttentionInterface.register(HF_NAME, _transformers_attention)
    AttentionMaskInterface.register(HF_NAME, _transformers_mask)
    return True


_PAIRS = "_effprof_pairs"


def _transformers_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    q_offset: int = 0,
    kv_offset: int = 0,
    device: Any = "cpu",
    **_: Any,
) -> torch.Tensor:
    """Stands in for the mask: the right shape without its memory, and the number of pairs on it."""
    mask = torch.empty((), dtype=torch.bool, device=device).expand(batch_size, 1, int(q_length), int(kv_length))
    setattr(mask, _PAIRS, _mask_pairs(mask_function, int(q_length), int(kv_length)))
    return mask


def _mask_pairs(function: Callable[..., Any], queries: int, keys: int) -> tuple[int, int | None] | None:
    """(pairs, window) of a mask function, found in its composition; else by evaluating it; None where neither works."""
    parts = list(_mask_parts(function))
    names = [name for name, _ in parts]
    if all(name in _KNOWN_MASKS for name in names):
        is_causal = "causal_mask_function" in names
        windows = [value for name, value in parts if name == "sliding_window_overlay"]
        if is_causal and queries == keys:
            window = min((int(each) for each in windows), default=None)
            return window_pairs(queries, window), window
        if not is_causal and not windows:
            return queries * keys, None
    return _evaluate_mask(function, queries, keys)


# Padding and packing are the batch's, not the model's: the counters of the step hold them.
_KNOWN_MASKS = {
    "causal_mask_function",
    "bidirectional_mask_function",
    "sliding_window_overlay",
    "padding_mask_function",
    "packed_sequence_mask_function",
}


def _mask_parts(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """The functions a composed mask is the intersection of, by name, each with what its closure holds."""
    name = getattr(function, "__qualname__", "").split(".<locals>")[0]
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    if name == "and_masks":
        for parts in cells:
            for part in parts:
                yield from _mask_parts(part)
    elif name == "remap_positions_for_packed_sequence":
        for part in cells:
            if callable(part):
                yield from _mask_parts(part)
    else:
        yield name, next((cell for cell in cells if isinstance(cell, int)), None)


def _evaluate_mask(function: Callable[..., Any], queries: int, keys: int) -> tuple[int, int | None] | None:
    first = torch.zeros((), dtype=torch.long)
    total = 0
    try:
        with _disable_current_modes():
            columns = torch.arange(keys)[None, :]
            for start in range(0, queries, _ROWS_AT_ONCE):
                rows = torch.arange(start, min(start + _ROWS_AT_ONCE, queries))[:, None]
                total += int(torch.as_tensor(function(first, first, rows, columns)).expand(len(rows), keys).sum())
    except Exception:  # a mask made of the batch's own tensors cannot be evaluated without their values
        return None
    return total, None


def _transformers_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention: (B, H, T, D) in, (B, T, H, Dv) out."""
    counter = _active[-1]
    queries, keys = int(query.shape[-2]), int(key.shape[-2])
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    found = getattr(attention_mask, _PAIRS, None)
    if found is not None:
        pairs, window = found
    elif attention_mask is None or sliding_window is not None or causal:
        window = sliding_window if causal and queries == keys else None
        pairs = (
            queries * keys
            if not causal
            else window_pairs(queries, window)
            if queries == keys
            else causal_pairs(queries, keys)
        )
    else:
        counter.assume("an attention mask given as a tensor was taken to leave every pair")
        pairs, window = queries * keys, None
    output = attend(counter, query, key, value, pairs, window)
    weights = query.new_empty((*query.shape[:-1], keys)) if options.get("output_attentions") else None
    return output.transpose(1, 2).contiguous(), weights
