"""FLOPs of one operation from its arguments: a multiply-add is two, elementwise work is none.

Formulas are looked up by an operation's name, so that operations that a torch version lacks cost nothing. Backward
kernels of fused attention are counted as the mathematics needs them (twice the forward); the scores that such a kernel
computes again belong to hardware FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

Arguments = Mapping[str, Any]
Formula = Callable[[Arguments, Any], int]

# Operations on matrices that have no formula here: they are listed, never taken for zero.
UNCOUNTED = frozenset(
    {
        "aten::_cdist_forward",
        "aten::_cdist_backward",
        "aten::_cudnn_rnn",
        "aten::_cudnn_rnn_backward",
        "aten::mkldnn_rnn_layer",
        "aten::mkldnn_rnn_layer_backward",
        "aten::miopen_rnn",
        "aten::miopen_rnn_backward",
        "aten::_trilinear",
        "aten::_native_multi_head_attention",
        "aten::_flash_attention_forward",
        "aten::_flash_attention_backward",
        "aten::_efficient_attention_forward",
        "aten::_efficient_attention_backward",
        "aten::_transformer_encoder_layer_fwd",
        "aten::_fft_r2c",
        "aten::_fft_c2r",
        "aten::_fft_c2c",
        "aten::_sparse_mm",
        "aten::_sparse_addmm",
        "aten::linalg_cholesky_ex",
        "aten::linalg_inv_ex",
        "aten::linalg_lu_factor_ex",
        "aten::linalg_qr",
        "aten::_linalg_eigh",
        "aten::_linalg_solve_ex",
        "aten::_linalg_svd",
        "aten::linalg_solve_triangular",
        "aten::triangular_solve",
    }
)
# Libraries whose operations only move or schedule data.
DATA_LIBRARIES = frozenset({"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "debugprims", "fsdp"})


@dataclass(frozen=True)
class AttentionArguments:
    """What a fused attention kernel was asked for. Shapes are (…, heads, length, head size)."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    is_causal: bool
    mask: Any
    backward: bool


def operation_name(func: Any) -> str:
    """The name without its overload, "aten::mm"."""
    return str(func._schema.name)


def named_arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the operation's schema."""
    values = dict(kwargs)
    for argument, value in zip(func._schema.arguments, args, strict=False):
        values[argument.name] = value
    return values


def attention_arguments(name: str, arguments: Arguments) -> AttentionArguments | None:
    """The attention that a `_scaled_dot_product_*` kernel computes; None for any other operation."""
    if not name.startswith("aten::_scaled_dot_product_") or "query" not in arguments:
        return None
    mask = next((arguments[key] for key in ("attn_mask", "attn_bias") if arguments.get(key) is not None), None)
    return AttentionArguments(
        query=tuple(arguments["query"].shape),
        key=tuple(arguments["key"].shape),
        value=tuple(arguments["value"].shape),
        is_causal=bool(arguments.get("is_causal", False)),
        mask=mask,
        backward="backward" in name,
    )


def _size(tensor: Any) -> int:
    return prod(int(length) for length in tensor.shape)


def _filter_size(weight: Any) -> int:
    return prod(int(length) for length in weight.shape[1:])


def _matrix_product(left: Any, right: Any) -> int:
    return 2 * _size(left) * int(right.shape[-1])


def _linear_backward(arguments: Arguments, _: Any) -> int:
    wanted = sum(bool(flag) for flag in arguments["output_mask"][:2])
    return 2 * _size(arguments["self"]) * int(arguments["weight"].shape[0]) * wanted


def _matmul(arguments: Arguments, out: Any) -> int:
    return 2 * max(_size(out), 1) * int(arguments["self"].shape[-1])


def _outputs(arguments: Arguments, out: Any) -> int:
    """A plain convolution makes each output of one filter's dot product; a transposed one spends each input on one."""
    reads = arguments["input"] if arguments.get("transposed") else out
    return 2 * _size(reads) * _filter_size(arguments["weight"])


def _convolution_backward(arguments: Arguments, _: Any) -> int:
    wanted = sum(bool(flag) for flag in arguments["output_mask"][:2])
    reads = arguments["input"] if arguments["transposed"] else arguments["grad_output"]
    return 2 * _size(reads) * _filter_size(arguments["weight"]) * wanted


def _grouped(arguments: Arguments, out: Any) -> int:
    """Rows of a 2-D operand are split among the groups, so every row meets exactly one group's matrix."""
    left, right = _first_two(arguments)
    if left.dim() == 3 and right.dim() == 3:
        return 2 * _size(left) * int(right.shape[-1])
    if left.dim() == 3:
        return 2 * int(left.shape[-2]) * int(left.shape[-1]) * int(right.shape[-1])
    return 2 * _size(left) * int(right.shape[-1])


def _first_two(arguments: Arguments) -> tuple[Any, Any]:
    tensors = [value for value in arguments.values() if hasattr(value, "shape")]
    return tensors[0], tensors[1]


def _product_of(left: str, right: str) -> Formula:
    return lambda arguments, _: _matrix_product(arguments[left], arguments[right])


FORMULAS: dict[str, Formula] = {
    "aten::mm": _product_of("self", "mat2"),
    "aten::_int_mm": _product_of("self", "mat2"),
    "aten::_scaled_mm": _product_of("self", "mat2"),
    "aten::addmm": _product_of("mat1", "mat2"),
    "aten::_addmm_activation": _product_of("mat1", "mat2"),
    "aten::sspaddmm": _product_of("mat1", "mat2"),
    "aten::bmm": _product_of("self", "mat2"),
    "aten::baddbmm": _product_of("batch1", "batch2"),
    "aten::addbmm": _product_of("batch1", "batch2"),
    "aten::mv": lambda arguments, _: 2 * _size(arguments["self"]),
    "aten::addmv": lambda arguments, _: 2 * _size(arguments["mat"]),
    "aten::dot": lambda arguments, _: 2 * _size(arguments["self"]),
    "aten::vdot": lambda arguments, _: 2 * _size(arguments["self"]),
    "aten::addr": lambda arguments, _: 2 * _size(arguments["vec1"]) * _size(arguments["vec2"]),
    "aten::linear": lambda a, _: 2 * _size(a["input"]) * int(a["weight"].shape[0]),
    "aten::mkldnn_linear": lambda a, _: 2 * _size(a["self"]) * int(a["weight"].shape[0]),
    "aten::linear_backward": _linear_backward,
    "aten::matmul": _matmul,
    "aten::convolution": _outputs,
    "aten::_convolution": _outputs,
    "aten::convolution_overrideable": _outputs,
    "aten::convolution_backward": _convolution_backward,
    "aten::convolution_backward_overrideable": _convolution_backward,
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "transformers::grouped_mm_fallback": _grouped,
    "transformers::grouped_mm_fallback_backward": lambda arguments, out: 2 * _grouped(arguments, out),
}
