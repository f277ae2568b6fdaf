"""What an operator's recorded shapes say: multiply-adds and least bytes of matrix products and attention.

FLOPs are 2 per multiply-add of what the operator executes; bytes are each operand and the result, once.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from effprof.trace.events import OperatorArgs

_BYTES_OF = {
    "float": 4,
    "double": 8,
    "c10::Half": 2,
    "c10::BFloat16": 2,
    "c10::Float8_e4m3fn": 1,
    "c10::Float8_e5m2": 1,
    "c10::Float8_e4m3fnuz": 1,
    "c10::Float8_e5m2fnuz": 1,
    "signed char": 1,
    "unsigned char": 1,
}
_NAME_OF = {"float": "fp32", "double": "fp64", "c10::Half": "fp16", "c10::BFloat16": "bf16", "signed char": "int8"}

# Operators that launch the kernel themselves (not aten::linear or aten::matmul, which call these), and where their
# two factors stand among the inputs.
_PRODUCTS = {
    "aten::mm": 0,
    "aten::bmm": 0,
    "aten::_scaled_mm": 0,
    "aten::_grouped_mm": 0,
    "aten::_scaled_grouped_mm": 0,
    "aten::_int_mm": 0,
    "aten::addmm": 1,
    "aten::baddbmm": 1,
    "aten::_addmm_activation": 1,
}
# Attention: where query stands, where `is_causal` stands, matrix products per pair of positions (forward 2, backward
# 5: it computes the scores again).
_ATTENTION = {
    "aten::_scaled_dot_product_flash_attention": (0, 4, 2),
    "aten::_scaled_dot_product_efficient_attention": (0, 6, 2),
    "aten::_scaled_dot_product_cudnn_attention": (0, 6, 2),
    "aten::_scaled_dot_product_flash_attention_backward": (1, 11, 5),
    "aten::_scaled_dot_product_efficient_attention_backward": (1, 11, 5),
}
SHAPED_OPERATORS = frozenset(_PRODUCTS) | frozenset(_ATTENTION)
_MOST_SHAPE_BYTES = 4096  # of JSON; lists of thousands of shapes belong to none of these operators


class Work(NamedTuple):
    """What one call of an operator has to do."""

    flops: float
    bytes: float
    dtype: str


def work_of(name: str, args: OperatorArgs) -> Work | None:
    """FLOPs, bytes and dtype of a call of one of `SHAPED_OPERATORS`; None without usable shapes."""
    texts = bytes(args.input_dims), bytes(args.input_type), bytes(args.concrete_inputs)
    if not texts[0] or sum(map(len, texts)) > _MOST_SHAPE_BYTES:
        return None
    return _work_of(name, *texts)


@lru_cache(maxsize=4096)  # a training repeats the same few hundred calls
def _work_of(name: str, dims_text: bytes, types_text: bytes, concrete_text: bytes) -> Work | None:
    dims, types, concrete = _decode(dims_text), _decode(types_text), _decode(concrete_text)
    if not isinstance(dims, list) or not isinstance(types, list):
        return None
    try:
        if name in _PRODUCTS:
            return _product(dims, types, _PRODUCTS[name])
        return _attention(dims, types, concrete, *_ATTENTION[name])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def _product(dims: list[Any], types: list[Any], first: int) -> Work | None:
    left, right = _shape(dims[first]), _shape(dims[first + 1])
    dtype = str(types[first])
    if len(left) < 2 or len(right) < 2 or dtype not in _BYTES_OF:
        return None
    # (rows, inner) · (inner, columns), with batch dimensions in front of both or of one of them
    rows, inner, columns = left[-2], left[-1], right[-1]
    if right[-2] != inner:
        return None
    batch = math.prod(left[:-2]) if len(left) >= len(right) else 1
    result = batch * rows * columns
    item = _BYTES_OF[dtype]
    moved = math.prod(left) * item + math.prod(right) * item + result * max(item, 2)
    return Work(2.0 * result * inner, float(moved), _dtype_name(dtype))


def _attention(
    dims: list[Any], types: list[Any], concrete: Any, query_at: int, causal_at: int, products: int
) -> Work | None:
    query, key, value = (_shape(dims[query_at + offset]) for offset in range(3))
    dtype = str(types[query_at])
    if not len(query) == len(key) == len(value) == 4 or dtype not in _BYTES_OF or not isinstance(concrete, list):
        return None
    is_causal = {"True": True, "False": False}[str(concrete[causal_at])] if causal_at < len(concrete) else None
    if is_causal is None:
        return None
    batch, heads, queries, width = query
    keys = key[2]
    # torch's causal mask starts at the first position: query i sees min(i + 1, keys) keys
    seen = min(queries, keys)
    pairs = seen * (seen + 1) / 2 + (queries - seen) * keys if is_causal else queries * keys
    item = _BYTES_OF[dtype]
    moved = (2 * math.prod(query) + math.prod(key) + math.prod(value)) * item
    return Work(2.0 * products * batch * heads * pairs * (width + value[3]) / 2, float(moved), _dtype_name(dtype))


def _dtype_name(dtype: str) -> str:
    return "fp8" if "Float8" in dtype else _NAME_OF.get(dtype, dtype)


def _shape(value: Any) -> list[int]:
    shape = [int(size) for size in value]
    if any(size < 0 or size > 1 << 40 for size in shape):
        raise ValueError("not a shape")
    return shape


def _decode(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text) if text else None
    except (msgspec.DecodeError, RecursionError):
        return None
