"""Segments of an A/B test, and what they say about speed and loss: statistics without any process behind them.

A segment is one short stretch of training. Segments of one side differ from each other more than steps of one segment
do (another process gets another memory layout, another neighbour on the host), so an interval must resample them first
and steps inside them second. Segments that ran next to each other form a block, which is compared within itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from effprof.metrics.intervals import (
    MIN_STEPS,
    REPLICATES,
    SEED,
    Interval,
    mean_interval,
    percentiles,
    ratio_replicates,
)

Array = NDArray[np.float64]
Series = tuple[Array, Array]  # counts and seconds, of steps or of turns
Outcome = Literal["ok", "out_of_memory", "failed", "timeout"]
MIN_BLOCKS = 2  # of one segment each side; one says nothing about how processes differ
NOISE = 0.01  # relative: smaller differences are not worth a change, and a busy host's drift reaches them
LOSS_TOLERANCE = 0.01  # relative: rounding of another precision moves a loss by less, damage by more
LOSS_SPREADS = 3.0  # standard deviations between segments of the unchanged training that damage must exceed
NORMAL_975 = 1.959964
SMALL_T_975 = (12.706, 4.303, 3.182, 2.776)  # Student's t, 1 … 4 degrees of freedom


@dataclass(frozen=True)
class SegmentResult:
    """What one segment of training gave.

    Attributes:
        counts: tokens or samples of each step behind the warm-up, shape (steps,).
        seconds: duration of each of these steps, shape (steps,).
        losses: loss of every step from the first on, warm-up included, shape (all steps,); empty where not known.
        metric: what `counts` counts per second.
        outcome: "ok", or why there are no steps.
        reason: the outcome in a sentence; empty for "ok".
        applied: the changes that were made.
        refused: change → why it could not be made.
        wall_s: seconds from the start of the segment's process to its end.
        run: the run directory; empty for a segment that wrote none.
        turns: which turn each step was made in, shape (steps,), for a segment that took turns with the other side's
            (see `effprof.advise.turns`); empty for one that ran alone.
    """

    counts: Array
    seconds: Array
    losses: Array = field(default_factory=lambda: np.zeros(0))
    metric: Literal["tokens_per_s", "samples_per_s"] = "tokens_per_s"
    outcome: Outcome = "ok"
    reason: str = ""
    applied: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    wall_s: float = 0.0
    run: str = ""
    turns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def rate(self) -> float:
        """Tokens or samples per second: all counts over all seconds, NaN without a step.

        Not a median over steps: data loader workers deliver in bursts, and the median step then waits for nothing.
        """
        return _rate(self.counts, self.seconds)


@dataclass(frozen=True)
class LossComparison:
    """Losses of both sides over the same step numbers: mean over the later half of them, median over segments."""

    before: float
    after: float
    difference: float  # relative, above 0 is worse
    allowed: float
    steps: int
    is_damaged: bool


def speed_gain(before: Sequence[SegmentResult], after: Sequence[SegmentResult]) -> float:
    """Geometric mean over blocks of after's rate ÷ before's, minus 1; NaN without a block.

    Args:
        before: segments without the change, in the order of their blocks.
        after: segments with it; number i of both ran next to each other, so that what slows the machine for a while
            slows both.
    """
    ratios = [_log_ratio(own, changed) for own, changed in zip(before, after, strict=False)]
    return math.expm1(float(np.mean(ratios))) if ratios else math.nan


def gain_interval(before: Sequence[SegmentResult], after: Sequence[SegmentResult]) -> Interval | None:
    """95 % interval of `speed_gain` from a bootstrap in two stages: whole blocks, then what lies inside each.

    That is runs of steps in each of two segments that ran one after the other; turns, both sides' together, of two that
    took turns, so that what slowed the machine for a while and fell on both takes nothing from the comparison.

    With few clusters a bootstrap's spread is too small by sqrt((n − 1) / n) and its tails are those of a t
    distribution (Cameron, Gelbach, Miller 2008); the deviations are stretched by both.

    Returns:
        None below two blocks, or where a segment has fewer than five steps.
    """
    blocks = list(zip(before, after, strict=False))
    if len(blocks) < MIN_BLOCKS or min(len(each.counts) for pair in blocks for each in pair) < MIN_STEPS:
        return None
    centre = math.log1p(speed_gain(before, after))
    stretch = math.sqrt(len(blocks) / (len(blocks) - 1)) * t_quantile(len(blocks) - 1) / NORMAL_975
    middle = percentiles(centre + stretch * (_mean_log_ratios(blocks) - centre))
    return None if middle is None else (math.expm1(middle[0]), math.expm1(middle[1]))


def compare_losses(before: Sequence[SegmentResult], after: Sequence[SegmentResult]) -> LossComparison | None:
    """Whether the change damages the loss: more than the unchanged training's own segments and steps vary.

    Returns:
        None where a side has no losses, or fewer than five steps in common.
    """
    with_losses = [each for each in (*before, *after) if len(each.losses)]
    steps = min((len(each.losses) for each in with_losses), default=0)
    own = [each.losses[steps // 2 : steps] for each in before if len(each.losses)]
    changed = [each.losses[steps // 2 : steps] for each in after if len(each.losses)]
    if steps < MIN_STEPS or not own or not changed:
        return None
    was = float(np.median([values.mean() for values in own]))
    became = float(np.median([values.mean() for values in changed]))
    if not math.isfinite(was):
        return LossComparison(was, became, math.nan, math.nan, steps, is_damaged=False)
    scale = max(abs(was), 1e-12)
    between = float(np.std([values.mean() for values in own], ddof=1)) if len(own) > 1 else 0.0
    within = _standard_error(own[0])
    allowed = max(LOSS_TOLERANCE, LOSS_SPREADS * max(between, within) / scale)
    difference = (became - was) / scale
    return LossComparison(was, became, difference, allowed, steps, not difference <= allowed)


def _mean_log_ratios(blocks: Sequence[tuple[SegmentResult, SegmentResult]]) -> Array:
    """Resampled means over blocks of log(after ÷ before), shape (replicates,)."""
    ratios = np.stack([_replicates(own, changed, place) for place, (own, changed) in enumerate(blocks)])
    draw = np.random.default_rng(SEED)
    shape = (REPLICATES, len(blocks))
    picked = ratios[draw.integers(0, len(blocks), shape), draw.integers(0, REPLICATES, shape)]
    means: Array = picked.mean(axis=1)
    return means


def _log_ratio(own: SegmentResult, changed: SegmentResult) -> float:
    """log(after's rate ÷ before's)."""
    before, after, _ = _compared(own, changed)
    return math.log(_rate(*after) / _rate(*before))


def _replicates(own: SegmentResult, changed: SegmentResult, place: int) -> Array:
    """Resampled values of `_log_ratio` of block number `place`, shape (replicates,)."""
    before, after, are_paired = _compared(own, changed)
    # the same salt draws the same turns on both sides
    rates = ratio_replicates(*before, 2 * place), ratio_replicates(*after, 2 * place + (not are_paired))
    replicates: Array = np.log(rates[1]) - np.log(rates[0])
    return replicates


def _compared(own: SegmentResult, changed: SegmentResult) -> tuple[Series, Series, bool]:
    """(counts, seconds) of both sides, and whether their entries belong together.

    These are turns that both sides made a step in, where they took enough of them together; else each one's steps.
    """
    common = np.intersect1d(own.turns, changed.turns)
    if len(common) < MIN_STEPS:
        return (own.counts, own.seconds), (changed.counts, changed.seconds), False
    return _per_turn(own, common), _per_turn(changed, common), True


def _rate(counts: Array, seconds: Array) -> float:
    total = float(np.sum(seconds))
    return float(np.sum(counts)) / total if total > 0 else math.nan


def _per_turn(segment: SegmentResult, common: NDArray[np.int64]) -> Series:
    counts = np.bincount(segment.turns, weights=segment.counts).astype(np.float64)
    seconds = np.bincount(segment.turns, weights=segment.seconds).astype(np.float64)
    return counts[common], seconds[common]


def _standard_error(values: Array) -> float:
    interval = mean_interval(values)
    return 0.0 if interval is None else (interval[1] - interval[0]) / (2 * NORMAL_975)


def t_quantile(freedom: int, z: float = NORMAL_975) -> float:
    """Quantile of Student's t, the 97.5 % one unless told.

    Args:
        freedom: degrees of freedom; 4 at least for any other quantile.
        z: the same quantile of the normal distribution.
    """
    if freedom <= len(SMALL_T_975) and z == NORMAL_975:
        return SMALL_T_975[freedom - 1]
    # expansion in 1 / degrees of freedom (Abramowitz, Stegun 26.7.5)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
