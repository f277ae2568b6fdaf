"""A run over time, thinned to a few hundred points a series in a way that keeps the single slow step in sight."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effprof.analysis.account import attempt_windows
from effprof.analysis.steps import JobSteps, column, job_steps, seconds_in
from effprof.analysis.timeline_events import find_events
from effprof.analysis.timeline_model import RankBins, Timeline, TimelineBand
from effprof.analysis.timeline_readings import memory_series, telemetry_series
from effprof.runlog.reader import Attempt, RankLog, Run
from effprof.runlog.schema import STEP_PHASES

Array = NDArray[np.float64]
Edges = NDArray[np.int64]

MAX_BINS = 600
# Attempts up to this number begin a bin of their own, so that no bin mixes the two sides of a restart.
MAX_SEPARATE_ATTEMPTS = 100
# A heat map wider than this has cells narrower than a few pixels; of many ranks the product is held instead.
MAX_RANK_BINS = 120
MAX_RANK_CELLS = 40_000
MIN_RANK_BINS = 12
RANK_PHASES = ("input_wait", "forward", "backward")


def build_timeline(run: Run, *, peak_flops_per_s: float | None = None, steps: JobSteps | None = None) -> Timeline:
    """The run over time.

    Args:
        run: as `effprof.runlog.reader.open_run` gives it.
        peak_flops_per_s: dense peak of one device that MFU is taken of; without one there is no MFU.
        steps: the job's aligned steps where they are known already.
    """
    steps = job_steps(run)[0] if steps is None else steps
    windows = attempt_windows(run)
    start_s, end_s = windows[0].start_s, windows[-1].end_s
    edges = step_edges(steps.attempt, MAX_BINS)
    events, totals = find_events(run, windows)
    timeline = Timeline(
        wall_s=end_s - start_s,
        step_time_s=band(steps.seconds, edges),
        events=events,
        events_total=totals,
        memory=memory_series(run, start_s),
        telemetry=telemetry_series(run, start_s),
        ranks=_rank_bins(run, steps, start_s),
    )
    if len(edges) < 2:
        return timeline
    ends = np.concatenate(
        [_step_ends(attempt, rows, start_s) for attempt, rows in zip(run.attempts, steps.rank_rows, strict=True)]
    )
    first, last = edges[:-1], edges[1:] - 1
    timeline.at_s = _rounded(ends[last])
    timeline.attempt = [run.attempts[place].index for place in steps.attempt[first]]
    timeline.first_step = steps.step[first].tolist()
    timeline.last_step = steps.step[last].tolist()
    timeline.is_steady = [bool(steps.is_steady[a:b].all()) for a, b in pairwise(edges)]
    timeline.tokens_per_s = _rate(steps.counts["tokens"], steps.seconds, edges)
    timeline.mfu = _mfu(steps, edges, peak_flops_per_s)
    timeline.loss = _loss(run, steps, edges)
    timeline.phases_s = _phases(run, steps, edges)
    return timeline


def step_edges(attempt: NDArray[np.int64], bins: int) -> Edges:
    """Where bins of about equal numbers of steps begin and end: (bins + 1,) indices, none for a run without steps.

    Args:
        attempt: place of the attempt that made each step, shape (steps,), not falling.
        bins: how many bins there may be.
    """
    count = len(attempt)
    if count == 0:
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.diff(attempt)) + 1
    if len(starts) >= min(MAX_SEPARATE_ATTEMPTS, bins):
        starts = starts[:0]
    even = np.linspace(0, count, min(count, bins - len(starts)) + 1).round().astype(np.int64)
    edges: Edges = np.union1d(even, starts)
    return edges


def band(values: Array, edges: Edges) -> TimelineBand:
    """Lowest, median and highest of `values`, shape (steps,), in each bin; null where a bin holds no number."""
    found = TimelineBand(low=[], median=[], high=[])
    for begin, end in pairwise(edges):
        part = values[begin:end]
        part = part[np.isfinite(part)]
        low, median, high = (part.min(), np.median(part), part.max()) if len(part) else (None, None, None)
        for target, value in ((found.low, low), (found.median, median), (found.high, high)):
            target.append(None if value is None else significant(float(value)))
    return found


def significant(value: float, digits: int = 5) -> float:
    """The value to as many digits as a drawing can show, so that a report stays small."""
    return float(f"{value:.{digits}g}")


def bin_means(values: Array, edges: Edges) -> list[float | None]:
    """Mean of each bin over the finite values; null where there are none."""
    known = np.isfinite(values)
    counts = np.add.reduceat(known.astype(np.int64), edges[:-1])
    totals = np.add.reduceat(np.where(known, values, 0.0), edges[:-1])
    return [significant(total / n) if n else None for total, n in zip(totals.tolist(), counts.tolist(), strict=True)]


def _rate(amount: Array, seconds: Array, edges: Edges) -> TimelineBand | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = amount / seconds
    return band(rates, edges) if np.isfinite(rates).any() else None


def _mfu(steps: JobSteps, edges: Edges, peak_flops_per_s: float | None) -> list[float | None]:
    if not peak_flops_per_s:
        return []
    done = np.add.reduceat(steps.flops["exact"], edges[:-1])
    possible = np.add.reduceat(steps.seconds * steps.devices, edges[:-1]) * peak_flops_per_s
    shares = [
        f / p if p > 0 and np.isfinite(f) else None for f, p in zip(done.tolist(), possible.tolist(), strict=True)
    ]
    # a share above the peak is refused everywhere; the warning that says so belongs to the efficiency figures
    kept = [significant(share) if share is not None and 0 < share <= 1 else None for share in shares]
    return kept if any(share is not None for share in kept) else []


def _logs(attempt: Attempt, rows: dict[int, NDArray[np.int64]]) -> list[tuple[RankLog, NDArray[np.int64]]]:
    """The ranks that made the attempt's steps, with the rows of their logs that the steps are."""
    found = [(rank, rows[rank.header.rank]) for rank in attempt.ranks]
    return [(rank, own) for rank, own in found if len(own)]


def _step_ends(attempt: Attempt, rows: dict[int, NDArray[np.int64]], start_s: float) -> Array:
    for rank, own in _logs(attempt, rows):
        offset_s = rank.header.wall_s - start_s
        ends: Array = (column(rank, "end_ns")[own] - rank.header.monotonic_ns) / 1e9 + offset_s
        return np.maximum(ends, 0.0)
    return np.zeros(0)


def _loss(run: Run, steps: JobSteps, edges: Edges) -> TimelineBand | None:
    """The column `loss` of the first rank that has it."""
    parts: list[Array] = []
    for attempt, rows in zip(run.attempts, steps.rank_rows, strict=True):
        logs = _logs(attempt, rows)
        known = [(rank, own) for rank, own in logs if "loss" in rank.columns]
        parts.append(column(known[0][0], "loss")[known[0][1]] if known else np.full(_length(logs), np.nan))
    values = np.concatenate(parts)
    return band(values, edges) if np.isfinite(values).any() else None


def _length(logs: Sequence[tuple[RankLog, NDArray[Any]]]) -> int:
    return len(logs[0][1]) if logs else 0


def _phases(run: Run, steps: JobSteps, edges: Edges) -> dict[str, list[float | None]]:
    found = {}
    for phase in STEP_PHASES:
        parts = []
        for attempt, rows in zip(run.attempts, steps.rank_rows, strict=True):
            logs = _logs(attempt, rows)
            total = np.zeros(_length(logs))
            for rank, own in logs:
                total += seconds_in(rank, (phase,))[own]
            parts.append(total / max(1, len(logs)))
        values = np.concatenate(parts)
        if values.any():
            found[phase] = bin_means(values, edges)
    return found


def _rank_bins(run: Run, steps: JobSteps, start_s: float) -> RankBins | None:
    """Ranks × bins of the last attempt that made steps."""
    for place in range(len(run.attempts) - 1, -1, -1):
        logs = _logs(run.attempts[place], steps.rank_rows[place])
        if len(logs) > 1:
            break
    else:
        return None
    numbers = steps.step[steps.attempt == place]
    bins = max(MIN_RANK_BINS, min(MAX_RANK_BINS, MAX_RANK_CELLS // len(logs)))
    edges = step_edges(np.zeros(len(numbers), np.int64), bins)
    last = edges[1:] - 1
    values: dict[str, list[list[float | None]]] = {name: [] for name in ("step", *RANK_PHASES)}
    for rank, rows in logs:
        values["step"].append(bin_means(seconds_in(rank, STEP_PHASES)[rows], edges))
        for phase in RANK_PHASES:
            values[phase].append(bin_means(seconds_in(rank, (phase,))[rows], edges))
    return RankBins(
        ranks=[rank.header.rank for rank, _ in logs],
        at_s=_rounded(_step_ends(run.attempts[place], steps.rank_rows[place], start_s)[last]),
        first_step=numbers[edges[:-1]].tolist(),
        last_step=numbers[last].tolist(),
        values_s=values,
    )


def _rounded(seconds: Array) -> list[float]:
    return [round(value, 4) for value in seconds.tolist()]
