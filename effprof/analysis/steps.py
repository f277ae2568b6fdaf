"""The job's steps: the ranks' logs of every attempt, set side by side by step number and summed over the job."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effprof.analysis.model import Warning
from effprof.analysis.resumes import kept_steps, unknown_resumes
from effprof.metrics.steady import has_settled, steady_start
from effprof.runlog.reader import Attempt, RankLog, Run
from effprof.runlog.schema import COUNTERS, OUTSIDE_PHASES, STEP_PHASES
from effprof.workload.model import CONVENTIONS, evaluate

Array = NDArray[np.float64]
# Steps that the efficiency figures rest on; fewer carry no interval and say little about the next hour.
FEW_STEPS = 5


@dataclass(frozen=True)
class JobSteps:
    """Every step of the job in the order made, all arrays of shape (steps,).

    Attributes:
        attempt: index of the attempt that made the step.
        step: the framework's step number.
        seconds: duration of the step, evaluation and checkpoint taken out.
        devices: number of devices that worked on it.
        counts: counter → sum over the data-parallel ranks.
        flops: convention → model FLOPs of the whole job.
        is_steady: whether it lies behind its attempt's warm-up.
        is_profiled: whether a kernel window slowed it; such a step is never steady.
        is_repeated: whether an earlier attempt had already made it.
        is_lost: whether it was repeated, or discarded by a resume from before it and never made again.
        rules: per attempt, how the warm-up was found.
        rank_rows: per attempt, rank → rows of its log that `step` of this attempt refers to.
    """

    attempt: NDArray[np.int64]
    step: NDArray[np.int64]
    seconds: Array
    devices: Array
    counts: dict[str, Array]
    flops: dict[str, Array]
    is_steady: NDArray[np.bool_]
    is_repeated: NDArray[np.bool_]
    is_lost: NDArray[np.bool_]
    is_profiled: NDArray[np.bool_]
    rules: list[str]
    rank_rows: list[dict[int, NDArray[np.int64]]]

    def steady(self, values: Array) -> Array:
        """The steady part of one of the arrays."""
        return values[self.is_steady]

    def first_steady_row(self, place: int, rank: int) -> int:
        """Row of a rank's log at which the steady part of attempt number `place` begins; a huge one if none does."""
        rows = self.steady_rows(place, rank)
        return int(rows[0]) if len(rows) else sys.maxsize

    def steady_rows(self, place: int, rank: int) -> NDArray[np.int64]:
        """Rows of a rank's log that are steady steps of attempt number `place`; none for a rank without steps."""
        rows = self.rank_rows[place][rank]
        return rows[self.is_steady[self.attempt == place]] if len(rows) else rows


@dataclass(frozen=True)
class _AttemptSteps:
    step: NDArray[np.int64]
    seconds: Array
    devices: int
    counts: dict[str, Array]
    flops: dict[str, Array]
    rows: dict[int, NDArray[np.int64]]
    is_profiled: NDArray[np.bool_]


def job_steps(run: Run) -> tuple[JobSteps, list[Warning]]:
    """Align, sum and mark the steps of a run. Steps that some rank did not finish are left out."""
    warnings: list[Warning] = []
    parts = [_attempt_steps(run, attempt, warnings) for attempt in run.attempts]
    warnings += unknown_resumes(run)
    is_steady, is_repeated, is_lost, rules = [], [], [], []
    for attempt, part, bounds in zip(run.attempts, parts, kept_steps(run), strict=True):
        usual = _without_profiled(part)
        index, rule = steady_start(usual)
        if not has_settled(usual, index):
            warnings.append(Warning(code="not_steady", message=f"attempt {attempt.index}: {rule}"))
        rules.append(rule if len(parts) == 1 else f"attempt {attempt.index}: {rule}")
        is_steady.append((np.arange(len(part.step)) >= index) & ~part.is_profiled)
        is_repeated.append(part.step <= bounds.reached_before)
        is_lost.append(bounds.are_lost(part.step))
    steps = JobSteps(
        attempt=_join([np.full(len(part.step), i, np.int64) for i, part in enumerate(parts)], np.int64),
        step=_join([part.step for part in parts], np.int64),
        seconds=_join([part.seconds for part in parts]),
        devices=_join([np.full(len(part.step), float(part.devices)) for part in parts]),
        counts={name: _join([part.counts[name] for part in parts]) for name in COUNTERS},
        flops={name: _join([part.flops[name] for part in parts]) for name in CONVENTIONS},
        is_steady=_join(is_steady, np.bool_),
        is_repeated=_join(is_repeated, np.bool_),
        is_lost=_join(is_lost, np.bool_),
        is_profiled=_join([part.is_profiled for part in parts], np.bool_),
        rules=rules,
        rank_rows=[part.rows for part in parts],
    )
    return steps, warnings


def column(rank: RankLog, name: str) -> Array:
    """A step column of a rank's log, NaN where it is missing; shape (steps,)."""
    values = rank.columns.get(name)
    return np.full(rank.steps, np.nan) if values is None else values


def seconds_in(rank: RankLog, phases: Iterable[str]) -> Array:
    """Seconds that each of the rank's steps spent in `phases`, shape (steps,)."""
    total = np.zeros(rank.steps)
    for phase in phases:
        values = rank.columns.get(f"{phase}_ns")
        if values is not None:
            total += np.nan_to_num(values)
    return total / 1e9


def data_parallel_groups(attempt: Attempt) -> dict[int, list[RankLog]]:
    """Ranks by the data-parallel rank whose batch they share; a rank that does not know its own stands alone."""
    groups: dict[int, list[RankLog]] = {}
    for rank in attempt.ranks:
        known = rank.header.data_parallel_rank
        groups.setdefault(rank.header.rank if known is None else known, []).append(rank)
    return groups


def world_size(attempt: Attempt) -> int:
    """Processes of the attempt: what its ranks say, or how many logs there are if that is more."""
    return max([len(attempt.ranks), *(rank.header.world_size for rank in attempt.ranks)])


def _attempt_steps(run: Run, whole: Attempt, warnings: list[Warning]) -> _AttemptSteps:
    # a rank that was stopped before its first step would leave no step that all have finished
    attempt = Attempt(whole.index, [rank for rank in whole.ranks if rank.steps] or whole.ranks, whole.nodes)
    numbers = {rank.header.rank: _step_numbers(rank) for rank in attempt.ranks}
    common = reduce(partial(np.intersect1d, assume_unique=True), [steps for steps, _ in numbers.values()])
    longest = max(len(steps) for steps, _ in numbers.values())
    if longest > len(common) + 1:
        # one step's difference is how ranks look when the job is stopped in the middle of a step
        warnings.append(
            Warning(
                code="ranks_differ",
                message=f"attempt {attempt.index}: {longest - len(common)} steps are not in every rank's log "
                "and are left out of the efficiency figures",
            )
        )
    rows = {rank: positions[np.searchsorted(steps, common)] for rank, (steps, positions) in numbers.items()}
    rows.update(
        {
            rank.header.rank: np.zeros(0, np.int64)
            for rank in whole.ranks
            if not rank.steps and rank.header.rank not in rows
        }
    )
    scale = _missing_rank_scale(run, attempt, warnings)
    counts, flops = _sum_over_job(run, attempt, rows, scale, len(common), warnings)
    profiled = np.zeros(len(common), np.bool_)
    for rank in attempt.ranks:
        profiled |= np.nan_to_num(column(rank, "profiled"))[rows[rank.header.rank]] > 0
    return _AttemptSteps(
        common.astype(np.int64), _step_seconds(attempt.ranks, rows), world_size(attempt), counts, flops, rows, profiled
    )


def _without_profiled(part: _AttemptSteps) -> Array:
    """The steps' times, those in a kernel window replaced by the usual one, so that they set no rule."""
    slowed = part.is_profiled
    if not slowed.any() or slowed.all():
        return part.seconds
    return np.where(slowed, np.median(part.seconds[~slowed]), part.seconds)


def _step_numbers(rank: RankLog) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct step numbers of a rank in order, and the row of each."""
    steps = column(rank, "step")
    known = np.flatnonzero(~np.isnan(steps))
    distinct, first = np.unique(steps[known].astype(np.int64), return_index=True)
    return distinct, known[first]


def _step_seconds(ranks: Sequence[RankLog], rows: dict[int, NDArray[np.int64]]) -> Array:
    """Step times of the rank that took longest over all: one rank's clock, so that their sum is real time.

    The largest time of each single step would count the same delay once on every rank that saw it. Time that another
    rank spent in evaluation, checkpoint, logging and the like while this one waited for it is taken out too.
    """
    # one rank after the other, so that memory does not grow with their number
    least_inside, most_outside = _inside_and_outside(ranks[0], rows)
    for rank in ranks[1:]:
        inside, outside = _inside_and_outside(rank, rows)
        most_outside = np.maximum(most_outside, outside)
        least_inside = np.minimum(least_inside, inside)
    slowest, longest_s = most_outside, -1.0
    for rank in ranks:
        inside, outside = _inside_and_outside(rank, rows)
        own = inside - np.minimum(most_outside - outside, inside - least_inside)
        if own.sum() > longest_s:
            slowest, longest_s = own, float(own.sum())
    return slowest


def _inside_and_outside(rank: RankLog, rows: dict[int, NDArray[np.int64]]) -> tuple[Array, Array]:
    """Seconds of a rank's steps in the phases of a step, and in evaluation, checkpoint and the like."""
    chosen = rows[rank.header.rank]
    return seconds_in(rank, STEP_PHASES)[chosen], seconds_in(rank, OUTSIDE_PHASES)[chosen]


def _missing_rank_scale(run: Run, attempt: Attempt, warnings: list[Warning]) -> float:
    """What to multiply the ranks' sum with to get the job's: more than 1 where logs of ranks are missing."""
    size = world_size(attempt)
    groups = data_parallel_groups(attempt)
    sizes = [rank.header.data_parallel_size for rank in attempt.ranks if rank.header.data_parallel_size]
    if any(rank.header.data_parallel_rank is None for rank in attempt.ranks) and size > 1:
        known = sizes[0] if sizes else run.record.parallel.get("data_parallel_size")
        if isinstance(known, int) and 0 < known < size:
            warnings.append(
                Warning(
                    code="data_parallel_rank_unknown",
                    message=f"which of the {size} ranks share a batch is not recorded: the job's tokens are the "
                    f"ranks' sum × {known}/{size}",
                )
            )
            return known / len(attempt.ranks)
        expected = size
    else:
        expected = max([len(groups), *sizes])
    if len(attempt.ranks) < size:
        present = [rank.header.rank for rank in attempt.ranks]
        missing = sorted(set(range(size)) - set(present))
        names = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        scaled = f"; tokens and FLOPs are scaled from {len(groups)} of {expected} data-parallel ranks"
        warnings.append(
            Warning(
                code="missing_ranks",
                message=f"attempt {attempt.index}: no steps of rank {names} of {size} are on record"
                + (scaled if len(groups) < expected else ""),
            )
        )
    return expected / len(groups)


def _sum_over_job(
    run: Run,
    attempt: Attempt,
    rows: dict[int, NDArray[np.int64]],
    scale: float,
    steps: int,
    warnings: list[Warning],
) -> tuple[dict[str, Array], dict[str, Array]]:
    counts = {name: np.zeros(steps) for name in COUNTERS}
    flops = {name: np.zeros(steps) for name in CONVENTIONS}
    uncounted = 0.0
    for ranks in data_parallel_groups(attempt).values():
        rank = max(ranks, key=lambda rank: (_counted(rank), -rank.header.rank))
        own = {name: column(rank, name)[rows[rank.header.rank]] for name in COUNTERS}
        uncounted = max(uncounted, _gap_share(own["samples"]), _gap_share(own["positions"]))
        own = {name: _fill(values) for name, values in own.items()}
        for name in COUNTERS:
            counts[name] += scale * own[name]
        for convention in CONVENTIONS:
            flops[convention] += scale * _flops(run.record.flops.conventions.get(convention), own)
    if uncounted > 0:
        warnings.append(
            Warning(
                code="tokens_sampled",
                message=f"attempt {attempt.index}: {100 * uncounted:.0f} % of the steps were not counted; "
                "their tokens and FLOPs are taken to be the mean of those that were",
            )
        )
    return counts, flops


def _flops(terms: dict[str, float] | None, counts: dict[str, Array]) -> Array | float:
    # the formula is linear, so that arrays go through the same function that the live callback uses
    value = evaluate(terms, counts)  # type: ignore[arg-type]
    return np.nan if value is None else value


def _counted(rank: RankLog) -> int:
    return int(sum(np.isfinite(column(rank, name)).sum() for name in COUNTERS))


def _gap_share(values: Array) -> float:
    """Share of steps without a count in a column that has counts; 0 for a column that has none."""
    known = np.isfinite(values)
    return float(1 - known.mean()) if known.any() else 0.0


def _fill(values: Array) -> Array:
    known = np.isfinite(values)
    return np.where(known, values, values[known].mean()) if known.any() else values


def _join(arrays: list[Any], dtype: Any = np.float64) -> Any:
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(0, dtype)
