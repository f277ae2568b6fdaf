"""Recognises attention that is written out: a product of queries and keys, a softmax, a product with values.

Such code multiplies all pairs, masked or not. The model FLOPs are those of the pairs its mask leaves, so once the
second product is seen, the two products and their gradients are booked again as attention over those pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from effprof.workload.counter import UNKNOWN_MASK, AttentionShape, OperationCounter, window_pairs
from effprof.workload.known_values import KnownValues, outside_modes

_TAG = "_effprof_scores"
PAIRS = "_effprof_pairs"  # on a stand-in mask: (pairs, window), or None where it could not be told
_PRODUCTS = frozenset({torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm})
_ADDED_PRODUCTS = frozenset({torch.baddbmm, torch.Tensor.baddbmm})
_EINSUMS = frozenset({torch.einsum, torch.functional.einsum})
_SOFTMAXES = frozenset({torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax})
_FILLS = frozenset({torch.masked_fill, torch.Tensor.masked_fill, torch.Tensor.masked_fill_})
_SUMS = frozenset({torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.add_})
_SUMS |= {torch.Tensor.__iadd__}
_CHOICES = frozenset({torch.where, torch.Tensor.where})
_HARD_MINIMUM = -65504.0  # fp16's smallest number: what masks add or fill in at the least


@dataclass(frozen=True)
class Scores:
    """Query-key products on their way to a softmax, and what is known of their mask."""

    flops: int
    gradients: int  # how many gradient products the first product has: 0, 1 or 2
    head_size: int
    mask: tuple[int, int | None] | None = None
    is_masked: bool = False
    is_softmax: bool = False


class WrittenAttention:
    """Follows scores from product to product while a function mode passes the calls by."""

    def __init__(self, counter: OperationCounter, known: KnownValues) -> None:
        self.counter, self.known = counter, known
        self._awaiting_recomputation = 0

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Note what `func(*args, **kwargs) -> out` means for scores among its arguments or in its result."""
        if func is torch.Tensor.__setitem__:
            self._mask_by_assignment(args)
        if not isinstance(out, torch.Tensor):
            return
        product = _operands(func, args, kwargs)
        if product is not None:
            left, right, inner = product
            scores = getattr(left, _TAG, None)
            if scores is not None and scores.is_softmax and inner == left.shape[-1]:
                self._book(scores, left, right, out)
            elif out.dim() >= 3 and left.dim() >= 3 and right.dim() >= 3:
                gradients = int(left.requires_grad) + int(right.requires_grad) if torch.is_grad_enabled() else 0
                setattr(out, _TAG, Scores(2 * prod(out.shape) * inner, gradients, inner))
            return
        tagged = next((each for each in (*args, *kwargs.values()) if getattr(each, _TAG, None) is not None), None)
        if tagged is None or prod(out.shape) != prod(tagged.shape):
            return
        scores = getattr(tagged, _TAG)
        if func in _SOFTMAXES:
            scores = replace(scores, is_softmax=True)
        elif not scores.is_softmax:
            scores = self._mask(scores, func, args, kwargs, out)
        setattr(out, _TAG, scores)

    def pairs_of_mask(self, mask: Any, queries: int, keys: int, *, is_additive: bool, marks_attended: bool) -> Any:
        """(pairs, window) that `mask` leaves, None where its values are not known."""
        told = getattr(mask, PAIRS, None)
        if told is not None:
            return told
        value = self.known.value_of(mask)
        if value is None:
            return None
        with outside_modes():
            if is_additive:
                value = (value > _HARD_MINIMUM) & (value != -10000.0)
            elif not marks_attended:
                value = ~value.bool()
            return describe_mask(value.bool(), queries, keys)

    def _mask(self, scores: Scores, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Scores:
        queries, keys = int(out.shape[-2]), int(out.shape[-1])
        named = {"is_additive": False, "marks_attended": False}
        if func in _FILLS:
            mask = args[1] if len(args) > 1 else kwargs.get("mask")
        elif func in _CHOICES and len(args) == 3:
            condition = args[0] if func is torch.where else args[1]
            keeps = getattr(args[1] if func is torch.where else args[0], _TAG, None) is not None
            mask, named["marks_attended"] = condition, keeps
        elif func in _SUMS:
            mask = next((each for each in args if isinstance(each, torch.Tensor) and not hasattr(each, _TAG)), None)
            named["is_additive"] = True
            if mask is None or mask.dim() < 2 or tuple(mask.shape[-2:]) != (queries, keys):
                return scores  # a bias, not a mask of pairs
        else:
            return scores
        pairs = self.pairs_of_mask(mask, queries, keys, **named)
        if pairs is None:
            return replace(scores, is_masked=True)
        if scores.mask is not None and scores.mask[0] <= pairs[0]:
            return scores
        return replace(scores, mask=pairs, is_masked=True)

    def _mask_by_assignment(self, args: tuple[Any, ...]) -> None:
        """`scores[mask] = -inf`."""
        scores, index = getattr(args[0], _TAG, None), args[1]
        if scores is None or scores.is_softmax:
            return
        pairs = None
        if isinstance(index, torch.Tensor) and index.dtype == torch.bool:
            queries, keys = int(args[0].shape[-2]), int(args[0].shape[-1])
            pairs = self.pairs_of_mask(index, queries, keys, is_additive=False, marks_attended=False)
        setattr(args[0], _TAG, replace(scores, mask=pairs or scores.mask, is_masked=True))

    def _book(self, scores: Scores, left: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> None:
        queries, keys = int(left.shape[-2]), int(left.shape[-1])
        pairs, window = scores.mask or (queries * keys, None)
        if scores.is_masked and scores.mask is None:
            self.counter.assume(UNKNOWN_MASK)
        second = 2 * prod(left.shape) * (prod(out.shape) // prod(left.shape[:-1]))
        gradients = int(left.requires_grad) + int(value.requires_grad) if torch.is_grad_enabled() else 0
        forward, backward = scores.flops + second, scores.flops * scores.gradients + second * gradients
        if self.counter.is_recomputing():
            # the device multiplies all pairs again; of the model, only a graph that is first built now is new
            forward, is_new_graph = 0, self._awaiting_recomputation > 0
            self._awaiting_recomputation -= int(is_new_graph)
            backward = backward if is_new_graph else 0
        elif not torch.is_grad_enabled():
            self._awaiting_recomputation += 1
        shape = AttentionShape(int(left.shape[0]), queries, keys, pairs, window)
        self.counter.move_to_attention(forward + backward, left, shape)


def describe_mask(attended: torch.Tensor, queries: int, keys: int) -> tuple[int, int | None]:
    """(pairs, window) of a mask of real booleans that is or broadcasts to (…, queries, keys)."""
    rows = torch.broadcast_to(attended, (*attended.shape[:-2], queries, keys)).sum(-1).double()
    rows = rows.reshape(-1, queries).mean(0)
    pairs = round(float(rows.sum()))
    window = int(rows.max())
    banded = torch.arange(1, queries + 1, dtype=torch.float64).clamp(max=window)
    is_window = queries == keys and window < keys and bool((rows == banded).all())
    return (window_pairs(queries, window), window) if is_window else (pairs, None)


def _operands(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """The two matrices of a product and the length they are summed over; None for other functions."""
    if func in _EINSUMS:
        return _einsum_operands(args)
    if func in _PRODUCTS:
        names: tuple[tuple[str, ...], ...] = (("self", "input"), ("other", "mat2", "tensor2"))
    elif func in _ADDED_PRODUCTS:
        names = (("batch1",), ("batch2",))
    else:
        return None
    first = 1 if func in _ADDED_PRODUCTS else 0
    left, right = (
        args[first + index] if len(args) > first + index else next(kwargs[name] for name in choice if name in kwargs)
        for index, choice in enumerate(names)
    )
    return (left, right, int(left.shape[-1])) if left.dim() >= 2 and right.dim() >= 2 else None


def _einsum_operands(args: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    if not isinstance(args[0], str) or len(operands) != 2 or "->" not in args[0] or "." in args[0]:
        return None
    inputs, output = args[0].replace(" ", "").split("->")
    first, second = inputs.split(",")
    summed = [letter for letter in first if letter in second and letter not in output]
    if len(summed) != 1:
        return None
    if hasattr(operands[1], _TAG):
        operands, first = (operands[1], operands[0]), second
    return operands[0], operands[1], int(operands[0].shape[first.index(summed[0])])
