"""Whether a change brings what it promises: A/B segments in turn, until the answer is clear or the time is up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import msgspec
import numpy as np

from effprof.advise.changes import CHANGES, check_changes
from effprof.advise.segments import NOISE, LossComparison, SegmentResult, compare_losses, gain_interval, speed_gain
from effprof.advise.turns import CommandBlocks
from effprof.analysis.model import Finding, Gain, Interval, _says
from effprof.metrics.intervals import SEED

SCHEMA = "effprof.verify/1"
CONFIRMED, REFUTED, NO_DIFFERENCE, FAILED = "confirmed", "refuted", "no_difference", "failed"
ENOUGH_BLOCKS = 3  # of one segment each side before a test may stop early: fewer are decided by chance too often
# Looking after every block finds differences by chance: an early end needs 99 % (2.576 ÷ 1.960 standard errors).
EARLY = 2.576 / 1.960
WIDE = 0.10  # an interval that is clear of zero but wider than this is made narrower while there is time
MIN_SEGMENT_S, MAX_SEGMENT_S = 2.0, 20.0
SEGMENTS_PER_BUDGET = 24  # stepping takes about half of a segment, starting the process the rest

Segment = Callable[[], SegmentResult]
Blocks = Callable[[Sequence[str]], Iterator[tuple[str, SegmentResult]]]  # the sides in the order to run → segments
Progress = Callable[[str], None]


class Obtained(msgspec.Struct, kw_only=True):
    """A measured gain."""

    value: Annotated[float, _says("relative change of the throughput: 0.12 is 12 % more")]
    ci95: Annotated[Interval | None, _says("95 % interval; null below two blocks")]


class LossCheck(msgspec.Struct, kw_only=True):
    """Losses of both sides over the same step numbers."""

    before: Annotated[float | None, _says("mean over the later half of the common steps, median over segments")]
    after: float | None
    difference: Annotated[float | None, _says("relative; above 0 is worse")]
    allowed: Annotated[float | None, _says("relative difference that the unchanged training's own spread explains")]
    steps: Annotated[int, _says("steps that every segment made")]
    is_damaged: bool


class SegmentFigures(msgspec.Struct, kw_only=True):
    """One segment, in the order run."""

    side: Annotated[str, _says("`before` or `after`")]
    rate: Annotated[float | None, _says("tokens or samples per second behind the warm-up")]
    steps: int
    seconds: Annotated[float, _says("of these steps")]
    wall_s: Annotated[float, _says("of the whole process; half of what both took where they took turns")]
    turns: Annotated[int, _says("that it took with the other side's; 0 where it ran alone")] = 0
    outcome: Annotated[str, _says("`ok`, `out_of_memory`, `failed`, `timeout`")]
    reason: str = ""
    run: str = ""


class Verification(msgspec.Struct, kw_only=True):
    """What `effprof verify` answers."""

    schema: Annotated[str, _says("names this document's keys")] = SCHEMA
    finding: Annotated[str | None, _says("null for a change that was given by hand")] = None
    changes: dict[str, Any] = {}
    predicted: Gain | None = None
    obtained: Obtained | None = None
    is_as_predicted: Annotated[bool | None, _says("whether the gain lies within predicted low … high")] = None
    verdict: Annotated[str, _says("`confirmed`, `refuted`, `no_difference`, `failed`")]
    reason: Annotated[str, _says("the verdict in a sentence")] = ""
    metric: Annotated[str, _says("`tokens_per_s` or `samples_per_s`")] = "tokens_per_s"
    before: Annotated[float | None, _says("median rate over segments")] = None
    after: float | None = None
    loss: Annotated[LossCheck | None, _says("null where the change can't touch it, or none was recorded")] = None
    refused: Annotated[dict[str, str], _says("changes that could not be made, with the reason")] = {}
    segments: list[SegmentFigures] = []
    trials: Annotated[str, _says("directory of the trials; empty for functions")] = ""
    is_interrupted: bool = False
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Faster beyond noise, and the loss unharmed."""
        return self.verdict == CONFIRMED and not (self.loss and self.loss.is_damaged)


def verify(
    before: Segment,
    after: Segment,
    *,
    budget_s: float = 300.0,
    checks_loss: bool = True,
    progress: Progress = lambda _: None,
) -> Verification:
    """Holds two ways of training against each other in interleaved segments.

    ::

        def segment(batch_size):
            def run():
                seconds = time_steps(batch_size, steps=50)  # array, one value per step, warm-up left out
                return SegmentResult(np.full(50, batch_size), seconds, metric="samples_per_s")

            return run


        verify(segment(8), segment(32), budget_s=60).verdict

    Blocks of one segment each, their order drawn with a fixed seed, so that a drift of the machine falls on both sides.

    Args:
        before: runs one segment without the change.
        after: runs one with it.
        budget_s: no block begins that would not end within it.
        checks_loss: whether losses are compared.
        progress: told about each segment.

    Returns:
        The verification; where it was interrupted (Ctrl-C), from the segments that were complete.
    """
    functions = {"before": before, "after": after}

    def blocks(sides: Sequence[str]) -> Iterator[tuple[str, SegmentResult]]:
        for side in sides:
            yield side, functions[side]()

    return _verify(blocks, budget_s, checks_loss, progress)


def verify_command(
    command: Sequence[str],
    changes: Mapping[str, Any],
    folder: Path,
    *,
    base: Mapping[str, Any] | None = None,
    finding: Finding | None = None,
    budget_s: float = 300.0,
    progress: Progress = lambda _: None,
) -> Verification:
    """`verify` on a training command, with changes made through EfficiencyCallback.

    Args:
        command: the training as it is started by hand.
        changes: what is tried, see `effprof.advise.changes`.
        folder: where the trials' runs go.
        base: changes that both sides have.
        finding: whose prediction is tested.

    Raises:
        EffprofError: a change is not known, or the command can't be run or measured.
    """
    base = dict(base or {})
    check_changes(changes)
    seconds = min(MAX_SEGMENT_S, max(MIN_SEGMENT_S, budget_s / SEGMENTS_PER_BUDGET))
    settings = {"before": base, "after": merge_changes(base, changes)}
    blocks = CommandBlocks(command, settings, folder, seconds=seconds, ends=monotonic() + budget_s)
    checks_loss = any(CHANGES[name].can_change_loss for name in changes)
    verification = _verify(blocks, budget_s, checks_loss, progress)
    verification.changes, verification.trials = dict(changes), str(folder)
    if set(changes) & set(verification.refused) == set(changes):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in verification.refused.items())
        verification.verdict, verification.reason = FAILED, f"the change could not be made: {reasons}"
    if finding is not None:
        verification.finding, verification.predicted = finding.id, finding.gain
        if verification.obtained is not None:
            inside = finding.gain.low <= verification.obtained.value <= finding.gain.high
            verification.is_as_predicted = inside
    return verification


def _verify(blocks: Blocks, budget_s: float, checks_loss: bool, progress: Progress) -> Verification:
    began = monotonic()
    test = _Test(checks_loss)
    order = np.random.default_rng(SEED)
    try:
        while test.failure is None and not test.is_decided():
            if test.blocks and monotonic() - began + test.block_s > budget_s:
                break
            for side, segment in blocks(("before", "after") if order.random() < 0.5 else ("after", "before")):
                test.add(side, segment)
                progress(test.progress())
                if test.failure is not None:
                    break
    except KeyboardInterrupt:
        return test.result(monotonic() - began, is_interrupted=True)
    return test.result(monotonic() - began)


def merge_changes(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Both sets of changes; the later wins, except that lists and environments are joined."""
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[name] = {**old, **value}
        elif isinstance(old, list) and isinstance(value, list):
            merged[name] = [*old, *(each for each in value if each not in old)]
        else:
            merged[name] = value
    return merged


@dataclass
class _Test:
    """Segments so far, and what they say."""

    checks_loss: bool
    order: list[tuple[str, SegmentResult]] = field(default_factory=list)
    failure: str | None = None

    def add(self, side: str, segment: SegmentResult) -> None:
        self.order.append((side, segment))
        if segment.outcome != "ok":
            what = "with the change" if side == "after" else "the training as it is"
            self.failure = f"{what}: {segment.outcome.replace('_', ' ')}: {segment.reason}"

    def side(self, name: str) -> list[SegmentResult]:
        return [segment for side, segment in self.order if side == name and segment.outcome == "ok"]

    @property
    def blocks(self) -> int:
        return min(len(self.side("before")), len(self.side("after")))

    @property
    def block_s(self) -> float:
        """Seconds that the next block is expected to take."""
        return sum(float(np.mean([each.wall_s for each in self.side(name)])) for name in ("before", "after"))

    def interval(self) -> Interval | None:
        return gain_interval(self.side("before"), self.side("after"))

    def is_decided(self) -> bool:
        interval = self.interval() if self.blocks >= ENOUGH_BLOCKS else None
        if interval is None:
            return False
        low, high = interval
        gain = speed_gain(self.side("before"), self.side("after"))
        is_clear = gain - EARLY * (gain - low) > 0 or gain + EARLY * (high - gain) < 0
        is_within_noise = low >= -NOISE and high <= NOISE
        return is_within_noise or (is_clear and abs(gain) > NOISE and high - low <= WIDE)

    def progress(self) -> str:
        side, last = self.order[-1]
        rate = last.outcome if last.outcome != "ok" else f"{last.rate:,.0f} {last.metric.replace('_per_s', '/s')}"
        text = f"segment {len(self.order)} ({side}): {rate}"
        interval = self.interval()
        if interval is None:
            return text
        gain = speed_gain(self.side("before"), self.side("after"))
        return f"{text}; gain {gain:+.1%} ({interval[0]:+.1%} … {interval[1]:+.1%})"

    def result(self, seconds: float, is_interrupted: bool = False) -> Verification:
        before, after = self.side("before"), self.side("after")
        gain, interval = speed_gain(before, after), self.interval()
        verdict, reason = self._verdict(interval)
        loss = compare_losses(before, after) if self.checks_loss else None
        return Verification(
            obtained=None if math.isnan(gain) else Obtained(value=gain, ci95=interval),
            verdict=verdict,
            reason=reason,
            metric=(before or after)[0].metric if before or after else "tokens_per_s",
            before=_median_rate(before),
            after=_median_rate(after),
            loss=None if loss is None else _loss_check(loss),
            refused={name: why for each in after for name, why in each.refused.items()},
            segments=[_figures(side, segment) for side, segment in self.order],
            is_interrupted=is_interrupted,
            seconds=seconds,
        )

    def _verdict(self, interval: Interval | None) -> tuple[str, str]:
        if self.failure is not None:
            return FAILED, self.failure
        if interval is None:
            return FAILED, "fewer than two segments of each side, or fewer than five steps in one, within the time"
        low, high = interval
        if abs(speed_gain(self.side("before"), self.side("after"))) <= NOISE:
            return NO_DIFFERENCE, f"the gain lies within ± {NOISE:.0%}"
        if low > 0:
            return CONFIRMED, "the whole interval is above zero"
        if high < 0:
            return REFUTED, "slower: the whole interval is below zero"
        return NO_DIFFERENCE, "the interval includes zero; more time would narrow it"


def _median_rate(segments: Sequence[SegmentResult]) -> float | None:
    return float(np.median([each.rate for each in segments])) if segments else None


def _loss_check(loss: LossComparison) -> LossCheck:
    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return LossCheck(
        before=known(loss.before),
        after=known(loss.after),
        difference=known(loss.difference),
        allowed=known(loss.allowed),
        steps=loss.steps,
        is_damaged=loss.is_damaged,
    )


def _figures(side: str, segment: SegmentResult) -> SegmentFigures:
    return SegmentFigures(
        side=side,
        rate=segment.rate if segment.outcome == "ok" else None,
        turns=len(np.unique(segment.turns)),
        steps=len(segment.counts),
        seconds=float(np.sum(segment.seconds)),
        wall_s=segment.wall_s,
        outcome=segment.outcome,
        reason=segment.reason,
        run=segment.run,
    )
