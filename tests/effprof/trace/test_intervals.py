"""Interval algebra against counting covered integers one by one."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effprof.trace import intervals

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12)
MOMENTS = st.lists(st.integers(-5, 100), min_size=1, max_size=8)


def make(spans: list[tuple[int, int]]) -> intervals.Intervals:
    starts = np.array([start for start, _ in spans], dtype=np.float64)
    return intervals.union(starts, starts + np.array([length for _, length in spans], dtype=np.float64))


def covered(spans: list[tuple[int, int]]) -> set[int]:
    return {moment for start, length in spans for moment in range(start, start + length)}


def as_set(one: intervals.Intervals) -> set[int]:
    return {
        moment
        for start, end in zip(one.starts, one.ends, strict=True)
        for moment in range(round(float(start)), round(float(end)))
    }


@settings(max_examples=300, deadline=None)
@given(SPANS, SPANS, MOMENTS)
def test_against_brute_force(first: list[tuple[int, int]], second: list[tuple[int, int]], moments: list[int]) -> None:
    one, other = make(first), make(second)
    a, b = covered(first), covered(second)
    assert as_set(one) == a
    assert intervals.length(one) == len(a)
    assert as_set(intervals.merge(one, other)) == a | b
    assert as_set(intervals.intersect(one, other)) == a & b
    assert as_set(intervals.subtract(one, other)) == a - b
    assert as_set(intervals.gaps(one, 10.0, 50.0)) == set(range(10, 50)) - a
    at = np.array(moments, dtype=np.float64)
    assert intervals.before(one, at).tolist() == [len([x for x in a if x < moment]) for moment in moments]
    assert intervals.contains(one, at).tolist() == [moment in a for moment in moments]


@settings(max_examples=200, deadline=None)
@given(SPANS)
def test_a_union_is_sorted_and_does_not_touch(spans: list[tuple[int, int]]) -> None:
    one = make(spans)
    assert (one.ends > one.starts).all()
    assert (one.starts[1:] > one.ends[:-1]).all()


@pytest.mark.parametrize("size", [0, 1])
def test_nothing_and_one(size: int) -> None:
    one = intervals.union(np.zeros(size), np.full(size, 2.5))
    assert intervals.length(one) == 2.5 * size
    assert intervals.before(one, np.array([1.0])).tolist() == [1.0 * size]
    assert len(intervals.gaps(one, 3.0, 3.0).starts) == 0


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=9))
def test_median(values: list[int]) -> None:
    assert intervals.median(np.array(values, dtype=np.float64)) == statistics.median(values)
