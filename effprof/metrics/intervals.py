"""95 % intervals of step statistics: a moving-block bootstrap, because neighbouring steps are not independent."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

REPLICATES = 1000
SEED = 20240229  # fixed: the same log always gives the same interval
MIN_STEPS = 5  # fewer steps cannot carry an interval
MAX_DIRECT_ELEMENTS = 200_000  # above it a resampled median is read from the distribution function instead

Interval = tuple[float, float]
Array = NDArray[np.float64]


def block_length(steps: int) -> int:
    """Length of the resampled blocks: the cube root of the series' length (Künsch 1989; Hall, Horowitz, Jing 1995)."""
    return max(1, int(np.rint(np.cbrt(steps))))


def median_interval(values: Array) -> Interval | None:
    """95 % interval of the median of `values`, shape (steps,); None below 5 steps."""
    return percentiles(median_replicates(values)) if len(values) >= MIN_STEPS else None


def mean_interval(values: Array) -> Interval | None:
    """95 % interval of the mean of `values`, shape (steps,); None below 5 steps."""
    return ratio_interval(values, np.ones_like(values))


def ratio_interval(numerator: Array, denominator: Array) -> Interval | None:
    """95 % interval of sum(numerator) / sum(denominator), both of shape (steps,); None below 5 steps."""
    return percentiles(ratio_replicates(numerator, denominator)) if len(numerator) >= MIN_STEPS else None


def ratio_replicates(numerator: Array, denominator: Array, salt: int = 0) -> Array:
    """Resampled values of sum(numerator) / sum(denominator), shape (replicates,).

    Args:
        salt: another one gives other resamples, for a second series that is independent of the first.
    """
    starts = _starts(len(numerator), salt)
    below = _block_sums(denominator)[starts].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates: Array = _block_sums(numerator)[starts].sum(axis=1) / below
    return replicates


def median_replicates(values: Array, salt: int = 0) -> Array:
    """Resampled medians of `values`, shape (replicates,)."""
    steps = len(values)
    if steps * REPLICATES > MAX_DIRECT_ELEMENTS:
        return _medians_by_distribution(values, salt)
    picks = (_starts(steps, salt)[:, :, None] + np.arange(block_length(steps))).reshape(REPLICATES, -1)[:, :steps]
    medians: Array = np.median(values[picks], axis=1)
    return medians


def percentiles(replicates: Array) -> Interval | None:
    """The middle 95 % of resampled values; None where any of them is not a number."""
    if not np.isfinite(replicates).all():
        return None
    low, high = np.percentile(replicates, [2.5, 97.5])
    return float(low), float(high)


def _medians_by_distribution(values: Array, salt: int) -> Array:
    """Bootstrap of the distribution function at the median, read back through its inverse (Woodruff 1952).

    A resample's median is where its distribution function passes one half; where that function is shifted by d at the
    sample's median, it passes one half at about the sample's quantile 1/2 − d.
    """
    centre = np.median(values)
    # ties at the median count half, so that a series of few distinct values stays centred
    below = (values < centre) + 0.5 * (values == centre)
    shift = ratio_replicates(below, np.ones_like(values), salt) - below.mean()
    medians: Array = np.quantile(values, np.clip(0.5 - shift, 0.0, 1.0))
    return medians


@lru_cache(maxsize=4)
def _starts(steps: int, salt: int) -> NDArray[np.int64]:
    """First indices of the resampled blocks, shape (replicates, blocks)."""
    length = block_length(steps)
    blocks = -(-steps // length)
    return np.random.default_rng((SEED, salt)).integers(0, steps - length + 1, size=(REPLICATES, blocks))


def _block_sums(values: Array) -> Array:
    length = block_length(len(values))
    total = np.concatenate(([0.0], np.cumsum(values)))
    sums: Array = total[length:] - total[:-length]
    return sums
