"""Intervals cover what they promise, are the same each time, and stay cheap on long runs."""

from __future__ import annotations

import time

import numpy as np
import pytest

from effprof.metrics import intervals
from effprof.metrics.intervals import (
    block_length,
    mean_interval,
    median_interval,
    median_replicates,
    percentiles,
    ratio_interval,
    ratio_replicates,
)


def correlated(steps: int, rng: np.random.Generator, memory: float = 0.3) -> np.ndarray:
    values = rng.standard_normal(steps)
    for index in range(1, steps):
        values[index] += memory * values[index - 1]
    return 10 + values


@pytest.mark.parametrize("steps", [190, 2500])  # resampled directly, and through the distribution function
def test_intervals_cover_the_truth_of_correlated_steps(steps: int) -> None:
    rng = np.random.default_rng(7)
    series = [correlated(steps, rng) for _ in range(120)]
    for interval in (median_interval, mean_interval):
        found = [interval(values) for values in series]
        covered = np.mean([low <= 10 <= high for low, high in (pair for pair in found if pair)])
        assert 0.86 <= covered <= 1.0, interval


def test_an_interval_that_ignored_correlation_would_be_too_narrow() -> None:
    values = correlated(400, np.random.default_rng(3), memory=0.8)
    low, high = mean_interval(values) or (0.0, 0.0)
    independent = 2 * 1.96 * values.std() / len(values) ** 0.5
    assert high - low > 1.5 * independent


def test_the_same_log_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(500)
    first = median_interval(values)
    intervals._starts.cache_clear()
    assert median_interval(values) == first


def test_two_series_of_equal_length_are_resampled_independently() -> None:
    values = np.random.default_rng(0).random(500)
    ones = np.ones(500)
    together = ratio_replicates(values, ones) / ratio_replicates(values, ones)
    apart = ratio_replicates(values, ones, salt=1) / ratio_replicates(values, ones)
    assert np.ptp(together) == 0
    assert np.ptp(apart) > 0.01


def test_direct_and_distribution_medians_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).lognormal(size=1500)
    direct = percentiles(median_replicates(values)) or (0.0, 0.0)
    monkeypatch.setattr(intervals, "MAX_DIRECT_ELEMENTS", 0)
    inverted = percentiles(median_replicates(values)) or (0.0, 0.0)
    assert inverted == pytest.approx(direct, rel=0.02)


def test_constant_steps_have_no_width() -> None:
    assert median_interval(np.full(50, 0.25)) == (0.25, 0.25)
    assert median_interval(np.full(50_000, 0.25)) == (0.25, 0.25)
    assert ratio_interval(np.full(9, 3.0), np.full(9, 2.0)) == pytest.approx((1.5, 1.5))


def test_few_steps_have_no_interval() -> None:
    assert median_interval(np.ones(4)) is None
    assert ratio_interval(np.ones(4), np.ones(4)) is None
    assert median_interval(np.ones(5)) == (1.0, 1.0)


def test_what_is_not_a_number_has_no_interval() -> None:
    assert median_interval(np.array([1.0, 2.0, np.nan, 4.0, 5.0, 6.0])) is None
    assert ratio_interval(np.ones(6), np.zeros(6)) is None


@pytest.mark.parametrize(("steps", "length"), [(1, 1), (8, 2), (27, 3), (1000, 10), (100_000, 46)])
def test_blocks_grow_with_the_cube_root(steps: int, length: int) -> None:
    assert block_length(steps) == length


def test_long_runs_stay_cheap() -> None:
    values = np.random.default_rng(0).random(100_000)
    median_interval(values)  # draws the resamples, which the next figures of the same run share
    began = time.process_time()
    for _ in range(4):
        median_interval(values)
    assert time.process_time() - began < 2.0  # seen: 0.2 s on one core
