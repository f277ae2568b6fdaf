"""Rehearsals: what a change does to forward and backward, timed in one process before an A/B test is spent on it.

A rule predicts from what a run recorded and from figures that hold for machines in general; a rehearsal times the very
model on the very machine (`effprof.callbacks.lightning_rehearsal`). The rest of the step is as the run recorded it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from effprof.advise.facts import step_share
from effprof.advise.rule import Missing
from effprof.advise.segments import t_quantile
from effprof.analysis.model import Analysis, Evidence, Finding, Gain, Interval, _says

FILE = "rehearsed.json"
# What the ratio differs by between processes (memory layout, neighbours): standard deviation of its logarithm. Pairs of
# processes on a shared CPU gave 0.01 to 0.06; it weighs as much as the spread of this many processes.
BETWEEN_PROCESSES, PROCESSES = 0.03, 4
# The interval is of what an A/B test will show, whose processes differ as much; so many blocks does a test have.
BLOCKS = 6
NORMAL_95 = 1.644854  # the interval holds nine of ten tests
METRIC = "rehearsal: model time per sample, with the change ÷ without"

Part = tuple[float, tuple[float, float, float]]  # share of the step; what is left of it: at best, likely, at worst


class Rehearsed(msgspec.Struct, kw_only=True):
    """One set of changes, rehearsed in one process; `ratio` is null where it could not be."""

    changes: dict[str, Any]
    ratio: Annotated[float | None, _says("time per sample of what was timed, with the change ÷ without")] = None
    ci95: Annotated[Interval | None, _says("95 % interval from the rounds")] = None
    own_s: Annotated[float, _says("one micro-batch as the training has it, s")] = 0.0
    merged: Annotated[int, _says("micro-batches that become one with the change")] = 1
    is_loaded: Annotated[bool, _says("whether loading was timed with forward and backward")] = False
    rounds: int = 0
    seconds: float = 0.0
    reason: Annotated[str, _says("why there is no ratio")] = ""

    @classmethod
    def of(
        cls,
        changes: Mapping[str, Any],
        ratios: Sequence[float],
        *,
        own_s: float,
        seconds: float,
        merged: int = 1,
        is_loaded: bool = False,
    ) -> Rehearsed:
        """From the ratio of each round: the median, with the interval of the mean of logarithms around it."""
        logs = np.log(np.asarray(ratios, float))
        middle = float(np.median(logs))
        half = t_quantile(len(logs) - 1) * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
        return cls(
            changes=dict(changes),
            ratio=math.exp(middle),
            ci95=(math.exp(middle - half), math.exp(middle + half)),
            own_s=own_s,
            merged=merged,
            is_loaded=is_loaded,
            rounds=len(logs),
            seconds=seconds,
        )


def write_rehearsed(folder: str, rehearsed: Sequence[Rehearsed]) -> None:
    """Beside the trial's run, for the process that asked for it."""
    (Path(folder) / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(list(rehearsed)), indent=1))


def read_rehearsed(folder: Path) -> list[Rehearsed]:
    """What a trial rehearsed; empty where it did not come to that."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=list[Rehearsed])
    except (OSError, msgspec.DecodeError):
        return []


def with_rehearsal(finding: Finding, rehearsed: Sequence[Rehearsed], analyses: Sequence[Analysis]) -> Finding:
    """The finding with its gain as rehearsed; as it was where its changes were not rehearsed.

    Each part of the step is left with a fraction of its time: forward and backward (input wait too, where batches
    were loaded) with the ratio, what the change reaches beyond them with a range. The gain is 1 / (what is left of
    the step) − 1. Its interval adds in quadrature the parts' and what an A/B test of the whole step will be off by.
    What was rehearsed beats the rule's bound, which rests on figures of machines in general.

    Args:
        rehearsed: of any number of processes.
        analyses: of trials without the changes; their mean step is divided.
    """
    found = [each for each in rehearsed if each.changes == finding.changes and each.ratio is not None]
    if not found:
        return finding
    ratio, spread, freedom = _spread(found)
    quantile = t_quantile(freedom, NORMAL_95)
    half = quantile * spread / math.sqrt(len(found))
    ratios = ratio * math.exp(-half), ratio, ratio * math.exp(half)
    try:
        left = _left(_parts(analyses, finding, found[0], ratios), quantile * spread / math.sqrt(BLOCKS))
    except Missing:
        return finding
    high, likely, low = (1 / max(each, 0.01) - 1 for each in left)
    gain = Gain(low=low, likely=likely, high=high, bound=max(finding.gain.bound, high), basis=finding.gain.basis)
    evidence = Evidence(metric=METRIC, value=ratio, unit="ratio")
    return msgspec.structs.replace(finding, gain=gain, evidence=[*finding.evidence, evidence])


def _spread(found: Sequence[Rehearsed]) -> tuple[float, float, int]:
    """Geometric mean of the processes' ratios; standard deviation of one's logarithm; its degrees of freedom.

    The spread is that of the processes with a prior: how they differ in general, or as much as each one's rounds leave
    open where that is more.
    """
    logs = np.array([math.log(each.ratio) for each in found if each.ratio is not None])
    rounds = [math.log(each.ci95[1] / each.ci95[0]) / 2 / t_quantile(each.rounds - 1) for each in found if each.ci95]
    prior = max(BETWEEN_PROCESSES**2, float(np.mean(np.square(rounds))) if rounds else 0.0)
    middle, freedom = float(logs.mean()), PROCESSES + len(logs) - 1
    variance = (PROCESSES * prior + float(np.sum((logs - middle) ** 2))) / freedom
    return math.exp(middle), math.sqrt(variance), freedom


def _parts(
    analyses: Sequence[Analysis], finding: Finding, rehearsed: Rehearsed, ratios: tuple[float, float, float]
) -> list[Part]:
    """What the change leaves of each part of the step that it reaches."""
    model = sum(_share(analyses, line) for line in ("step.forward", "step.backward"))
    if model <= 0:
        raise Missing("forward and backward", "a Trainer tells them apart; so does StepProfiler.phase")
    parts: list[Part] = [(model + _share(analyses, "step.host_gap"), ratios)]
    other, waits = _share(analyses, "step.other"), _share(analyses, "step.input_wait")
    best, likely, _ = ratios
    if rehearsed.is_loaded:
        parts[0] = (parts[0][0] + waits, ratios)
    if "micro_batch" in finding.changes:
        # what callbacks and copies do once per micro-batch goes with their number; collating partly with the samples
        once = 1 / rehearsed.merged
        half = (1 + once) / 2
        parts.append((other + _share(analyses, "step.host_to_device"), (once, once, half)))
        if not rehearsed.is_loaded:
            parts.append((waits, (once, half, 1.0)))
    elif {"detect_anomaly", "deterministic", "threads"} & set(finding.changes):
        parts.append((other, (best, likely, 1.0)))  # operators of callbacks feel them too
    return parts


def _left(parts: Sequence[Part], noise: float) -> tuple[float, float, float]:
    """Of the whole step: at best, likely and at worst, for a test that is off by the fraction `noise`."""
    likely = 1 - sum(share * (1 - left[1]) for share, left in parts)
    better = math.hypot(likely * noise, *(share * (left[1] - left[0]) for share, left in parts))
    worse = math.hypot(likely * noise, *(share * (left[2] - left[1]) for share, left in parts))
    return likely - better, likely, likely + worse


def _share(analyses: Sequence[Analysis], line: str) -> float:
    """Mean share of the step; trials without such a line spent nothing on it."""
    shares = [step_share(each, line) if line in each.account.lines else 0.0 for each in analyses]
    return float(np.mean(shares))
