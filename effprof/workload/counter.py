"""Adds up the FLOPs of the operations that pass by, told apart by phase, dtype and kind.

`OperationCounter` is a torch dispatch mode: it sees every operation below autograd, forward and backward, of whatever
layer or library it comes from. It knows no model; attention that must not be taken apart is reported to it by
`effprof.workload.attention`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from effprof.workload import kernels
from effprof.workload.known_values import outside_modes
from effprof.workload.routing import ASSUMPTION, EvenRouting

UNKNOWN_MASK = "an attention mask given as a tensor was taken to leave every pair"


_ASKS_FOR_DATA = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::bincount",
        "aten::index",
        "aten::index_put",
        "aten::index_put_",
        "aten::_index_put_impl_",
    }
)


class CountFailed(Exception):
    """The operation count could not be made; the message says why, in words for the user."""


class AttentionShape(NamedTuple):
    """One kind of attention in a model: lengths and the pairs of one sequence and head that its mask leaves."""

    batch: int
    queries: int
    keys: int
    pairs: int
    window: int | None = None
    is_cross: bool = False


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered.

    Attributes:
        model: FLOPs per operation name, recomputation left out.
        by_dtype: the same, per dtype of the matrices that were multiplied.
        attention: FLOPs per `AttentionShape`.
        recomputed: FLOPs of forward operations run again inside the backward pass (activation checkpointing).
        uncounted: calls of operations that may hold arithmetic and have no formula.
        assumptions: what was taken for granted because fake tensors hold no values.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model: Counter[str] = Counter()
        self.by_dtype: Counter[str] = Counter()
        self.attention: Counter[AttentionShape] = Counter()
        self.recomputed = 0
        self.calls = 0
        self.uncounted: Counter[str] = Counter()
        self.assumptions: dict[str, None] = {}
        self.differentiates_twice = False
        self.saw_backward = False
        self.routing = EvenRouting()
        # answers for tensors whose values are known all the same (buffers, masks); set by whoever follows them
        self.value_of: Callable[[torch.Tensor], torch.Tensor | None] = lambda tensor: None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return self._count_higher_order(func, args, kwargs)
        name = kernels.operation_name(func)
        if name in _ASKS_FOR_DATA:
            answer = self._answer(name, func, args, kwargs)
            if answer is not None:
                return answer
        try:
            out = func(*args, **kwargs)
        except torch._subclasses.fake_tensor.DynamicOutputShapeException as error:
            raise CountFailed(f"the size of a tensor depends on the data ({name})") from error
        if name == "aten::all":
            expect(out, True)
        self.routing.follow(name, args, kwargs, out)
        self._count(name, func, args, kwargs, out)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled while this mode is entered, and torch's guard against it costs as much as the counting
        return False

    def add(self, name: str, flops: int, operand: torch.Tensor, *, recompute: bool) -> None:
        """Book `flops` of an operation on matrices like `operand`."""
        self.calls += 1
        self.saw_backward = self.saw_backward or is_in_backward()
        if recompute:
            self.recomputed += flops
            return
        self.model[name] += flops
        self.by_dtype[dtype_name(operand.dtype, operand.device, is_convolution="convolution" in name)] += flops

    def add_attention(
        self, name: str, flops: int, operand: torch.Tensor, shape: AttentionShape, *, recompute: bool
    ) -> None:
        """Book `flops` of an attention whose pairs are known."""
        self.add(name, flops, operand, recompute=recompute)
        if not recompute:
            self.attention[shape] += flops

    def move_to_attention(self, flops: int, operand: torch.Tensor, shape: AttentionShape) -> None:
        """Book `flops` of products over all pairs, counted or about to be, as attention over the pairs of `shape`."""
        left = round(flops * shape.pairs / (shape.queries * shape.keys))
        self.model["aten::bmm"] -= flops
        self.model["attention"] += left
        self.attention[shape] += left
        self.by_dtype[dtype_name(product_dtype(operand), operand.device)] -= flops - left

    def is_recomputing(self) -> bool:
        """Whether the operation now running is a forward operation run again by the backward pass."""
        # the autograd engine runs gradients with grad mode off; checkpointing turns it on to rebuild a piece of graph
        if not is_in_backward() or self.differentiates_twice:
            return False
        return bool(torch.is_grad_enabled()) or _is_called_by_checkpoint()

    def _answer(self, name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The answer of an operation that needs values or sizes that depend on them; None to let torch try."""
        answer: Any = None
        if name == "aten::_local_scalar_dense":
            return self._answer_scalar(args[0])
        if name == "aten::nonzero":
            answer = self.routing.nonzero(args[0])
        elif name == "aten::bincount":
            answer = self.routing.bincount(args, kwargs)
        else:
            indices = self.routing.without_masks(args[1])
            if indices is not None:
                answer = func(args[0], indices, *args[2:], **kwargs)
        if self.routing.was_used:
            self.assume(ASSUMPTION)
        return answer

    def _count(self, name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        formula = kernels.FORMULAS.get(name)
        if formula is not None:
            arguments = kernels.named_arguments(func, args, kwargs)
            operand = next(value for value in arguments.values() if isinstance(value, torch.Tensor))
            if name.startswith("aten::add") or name == "aten::baddbmm":  # the first tensor is the addend
                operand = args[1]
            self.add(name, formula(arguments, out), operand, recompute=self.is_recomputing())
            return
        if name.startswith("aten::_scaled_dot_product_"):
            attention = kernels.attention_arguments(name, kernels.named_arguments(func, args, kwargs))
            if attention is not None:
                self._count_fused_attention(name, attention, args)
                return
        if _may_hold_arithmetic(name, args, kwargs):
            self.uncounted[name] += 1

    def _count_fused_attention(self, name: str, call: kernels.AttentionArguments, args: tuple[Any, ...]) -> None:
        queries, keys = call.query[-2], call.key[-2]
        pairs = causal_pairs(queries, keys) if call.is_causal else queries * keys
        if call.mask is not None:
            self.assume(UNKNOWN_MASK)
        flops = 2 * prod(call.query[:-2]) * pairs * (call.query[-1] + call.value[-1]) * (2 if call.backward else 1)
        operand = next(value for value in args if isinstance(value, torch.Tensor))
        shape = AttentionShape(call.query[0], queries, keys, pairs)
        self.add_attention(name, flops, operand, shape, recompute=self.is_recomputing())

    def _count_higher_order(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        name = func.name() if callable(getattr(func, "name", None)) else str(func)
        raise CountFailed(f"it runs torch's higher-order operation {name}, which cannot be counted")

    def assume(self, sentence: str) -> None:
        """Note what was taken for granted, once."""
        self.assumptions[sentence] = None

    def _answer_scalar(self, tensor: torch.Tensor) -> bool | int | float | complex:
        routed = self.routing.scalar(tensor)
        if routed is not None:
            self.assume(ASSUMPTION)
            return routed
        value = self.value_of(tensor)
        if value is not None:
            with outside_modes():
                answer: bool | int | float | complex = value.item()
            return answer
        self.assume("values read from tensors (.item(), if tensor:) were answered with constants")
        if tensor.dtype == torch.bool:
            return bool(getattr(tensor, _ANSWER, False))
        if tensor.dtype.is_complex:
            return complex(1.0)
        return 1.0 if tensor.dtype.is_floating_point else 1


def is_in_backward() -> bool:
    """Whether the autograd engine is running on this thread."""
    return bool(torch._C._current_graph_task_id() != -1)


def _is_called_by_checkpoint() -> bool:
    """Whether the code now running, under `no_grad` of its own, is a piece of forward that checkpointing repeats."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.endswith(_CHECKPOINT):
            return True
        if path.endswith(_ENGINE):
            return False  # reentrant checkpointing differentiates the piece that it has rebuilt
        frame = frame.f_back  # type: ignore[assignment]
    return False


_CHECKPOINT = os.path.join("torch", "utils", "checkpoint.py")
_ENGINE = os.path.join("torch", "autograd", "graph.py")

_SHORT_NAMES = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def dtype_name(dtype: Any, device: torch.device, *, is_convolution: bool = False) -> str:
    """The dtype that matrix units really run ("bf16", "tf32"): fp32 products may run as TF32 where torch allows it."""
    name = str(dtype).removeprefix("torch.")
    if name.startswith("float8"):
        return "fp8"
    if name == "float32" and device.type == "cuda" and _runs_tf32(is_convolution):
        return "tf32"
    return _SHORT_NAMES.get(name, name)


def product_dtype(operand: torch.Tensor) -> torch.dtype:
    """The dtype that a product with `operand` runs in: autocast's where it is on and lowers fp32, else its own."""
    kind = operand.device.type
    if operand.dtype == torch.float32 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return operand.dtype


def _runs_tf32(is_convolution: bool) -> bool:
    if torch.version.hip is not None or not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 8:
        return False
    if is_convolution:
        return bool(torch.backends.cudnn.allow_tf32)
    matmul = torch.backends.cuda.matmul
    # since torch 2.9 there is a setting per backend, and asking by the old name fails once the new one was used
    return bool(matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32)


_ANSWER = "_effprof_answer"


def expect(tensor: Any, answer: bool) -> None:
    """Remember how a healthy training run would answer `if tensor:` (all finite, say); other questions get False."""
    if isinstance(tensor, torch.Tensor):
        setattr(tensor, _ANSWER, answer)


def causal_pairs(queries: int, keys: int) -> int:
    """Pairs of a causal mask aligned at the first position: query i meets keys 0 … i."""
    whole = min(queries, keys)
    return whole * (whole + 1) // 2 + (queries - whole) * keys


def window_pairs(length: int, window: int | None) -> int:
    """Pairs of a causal mask in which a query meets itself and the `window` - 1 positions before it."""
    if window is None or window >= length:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def _may_hold_arithmetic(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if name in kernels.UNCOUNTED:
        return True
    if name.split("::")[0] in kernels.DATA_LIBRARIES:
        return False
    values = [*args, *kwargs.values()]
    return any(isinstance(value, torch.Tensor) and value.dtype.is_floating_point for value in values)
