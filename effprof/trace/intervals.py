"""Interval algebra on sorted arrays: unions, gaps, differences and how much of a set lies before each moment.

Time is a float64 array in any one unit. An interval is half-open, [start, end); empty ones vanish in a union.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[Any]  # integers of any width


class Intervals(NamedTuple):
    """Disjoint intervals in ascending order that do not touch."""

    starts: Floats
    ends: Floats


EMPTY = Intervals(np.empty(0), np.empty(0))


def union(starts: Floats, ends: Floats) -> Intervals:
    """The moments covered by at least one of the intervals, given in any order."""
    is_real = ends > starts
    starts, ends = starts[is_real], ends[is_real]
    if not len(starts):
        return EMPTY
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    begins = np.flatnonzero(np.r_[True, starts[1:] > reached[:-1]])
    return Intervals(starts[begins], reached[np.r_[begins[1:] - 1, len(reached) - 1]])


def merge(*sets: Intervals) -> Intervals:
    """The moments covered by at least one of the sets."""
    return union(np.concatenate([one.starts for one in sets]), np.concatenate([one.ends for one in sets]))


def length(one: Intervals) -> float:
    return float((one.ends - one.starts).sum())


def before(one: Intervals, moments: Floats) -> Floats:
    """How much of the set lies before each moment; the difference of two is how much lies between them."""
    if not len(one.starts):
        return np.zeros(len(moments))
    total = np.r_[0.0, np.cumsum(one.ends - one.starts)]
    index = np.searchsorted(one.starts, moments, side="right") - 1
    inside = np.clip(moments - one.starts[index], 0.0, one.ends[index] - one.starts[index])
    return np.where(index < 0, 0.0, total[np.maximum(index, 0)] + inside)


def contains(one: Intervals, moments: Floats) -> Flags:
    """Whether each moment lies in the set."""
    index = np.searchsorted(one.starts, moments, side="right") - 1
    if not len(one.starts):
        return np.zeros(len(moments), dtype=bool)
    return (index >= 0) & (moments < one.ends[index])


def intersect(one: Intervals, other: Intervals) -> Intervals:
    """The moments that both sets cover."""
    return _pick(one, other, lambda in_one, in_other: in_one & in_other)


def subtract(one: Intervals, other: Intervals) -> Intervals:
    """The moments that `one` covers and `other` does not."""
    return _pick(one, other, lambda in_one, in_other: in_one & ~in_other)


def gaps(one: Intervals, start: float, end: float) -> Intervals:
    """The moments of [start, end) that the set does not cover."""
    return subtract(Intervals(np.array([start]), np.array([end])), one) if end > start else EMPTY


def median(values: Floats) -> float:
    """The middle of some values, nan of none. numpy's own loads its masked arrays first, 15 ms."""
    if not len(values):
        return float("nan")
    half = len(values) // 2
    middle = np.partition(values, [max(half - 1, 0), half])
    return float(middle[half]) if len(values) % 2 else float(middle[half - 1] + middle[half]) / 2


def distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The different values in ascending order (numpy's own loads its masked arrays, too)."""
    ordered = np.sort(values)
    return ordered[np.r_[True, ordered[1:] != ordered[:-1]]] if len(ordered) else ordered


def _pick(one: Intervals, other: Intervals, rule: Any) -> Intervals:
    points = distinct(np.concatenate([*one, *other]))
    if len(points) < 2:
        return EMPTY
    left, right = points[:-1], points[1:]
    is_picked = rule(contains(one, left), contains(other, left))
    return union(left[is_picked], right[is_picked])
