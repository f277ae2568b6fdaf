"""The time account: every second of wall clock in exactly one line, so that nothing is counted twice or lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from effprof.analysis.model import ACCOUNT_LINES, Account, Warning
from effprof.analysis.resumes import KeptSteps, kept_steps
from effprof.analysis.steps import JobSteps, column, seconds_in, world_size
from effprof.analysis.windows import WindowShares, book_profiling, window_shares
from effprof.runlog.parallel import in_order
from effprof.runlog.reader import RankLog, Run
from effprof.runlog.schema import PHASES, STEP_PHASES

if TYPE_CHECKING:
    from concurrent.futures import Executor

Array = NDArray[np.float64]

# Overlapping records up to this share of the wall clock are clock granularity; above it the log contradicts itself.
OVERLAP_TOLERANCE = 0.001
# Device time may exceed host time by this share (the sampled steps are not all steps) before a reader is told.
DEVICE_TOLERANCE = 0.02
# Steps whose device time must have been sampled before it is taken to stand for the others.
MIN_SAMPLED_STEPS = 3
_NANOSECOND = 1e-9
# Only kernels tell these apart; `step.host_gap` is measured on the device basis too.
ONLY_KERNELS = ("step.exposed_communication", "step.pipeline_bubble")


@dataclass(frozen=True)
class Window:
    """The span of wall clock, Unix seconds, that an attempt answers for, and the gap before it."""

    start_s: float
    end_s: float
    gap_s: float
    devices: int


@dataclass(frozen=True)
class RunAccount:
    """The job's account and each rank's."""

    job: Account
    ranks: dict[int, Account]
    wall_device_s: float
    start_s: float
    end_s: float
    warnings: list[Warning]


@dataclass(frozen=True)
class _RankJob:
    """One rank's log of one attempt, with what its lines depend on beyond it."""

    log: RankLog
    window: Window
    bounds: KeptSteps
    steady_row: int
    basis: str
    recorded: WindowShares | None
    is_given_up: bool


def account(run: Run, steps: JobSteps, executor: Executor | None = None) -> RunAccount:
    """Account for the wall clock of a run whose aligned steps are `steps`.

    The windows of the attempts and the gaps between them tile the wall clock. Inside a window a rank's steps and
    spans are laid on its clock in order, each beginning where the one before ended at the earliest, and what none of
    them covers is `unattributed`: so no second has two lines and none is missing. The job's account is the mean over
    the ranks of each attempt; a rank's own covers the attempts that it took part in.

    Args:
        run: the run's record.
        steps: as `job_steps` aligned them.
        executor: reduces several ranks at a time to their lines; the account is the same without one.
    """
    windows = attempt_windows(run)
    sampled = sum(int(np.isfinite(column(r, "device_forward_ns")).sum()) for a in run.attempts for r in a.ranks)
    shares_of = window_shares(run)
    basis = "kernel" if shares_of else "device" if sampled >= MIN_SAMPLED_STEPS else "host"
    jobs = [
        _RankJob(
            log=rank,
            window=window,
            bounds=bounds,
            steady_row=rank.steps if basis == "host" else steps.first_steady_row(place, rank.header.rank),
            basis=basis,
            recorded=shares_of.get((place, rank.header.rank)),
            is_given_up=rank.end.status == "failed" if rank.end else place < len(run.attempts) - 1,
        )
        for place, (attempt, window, bounds) in enumerate(zip(run.attempts, windows, kept_steps(run), strict=True))
        for rank in attempt.ranks
    ]
    summaries = in_order(executor, _summarise, jobs)
    warnings: list[Warning] = []
    job = _empty(basis)
    ranks: dict[int, Account] = {}
    for attempt, window in zip(run.attempts, windows, strict=True):
        for rank in attempt.ranks:
            lines, found = next(summaries)
            warnings += found
            own = ranks.setdefault(rank.header.rank, Account(basis=basis, wall_s=0.0, lines=_empty(basis)))
            _add(own.lines, lines, 1.0)
            own.lines["restart"] += window.gap_s
            own.wall_s += window.gap_s + window.end_s - window.start_s
            _add(job, lines, 1.0 / len(attempt.ranks))
        job["restart"] += window.gap_s
    wall_s = windows[-1].end_s - windows[0].start_s
    _settle(job, wall_s)
    for own in ranks.values():
        _settle(own.lines, own.wall_s)
    return RunAccount(
        Account(basis=basis, wall_s=wall_s, lines=job),
        dict(sorted(ranks.items())),
        sum((window.gap_s + window.end_s - window.start_s) * window.devices for window in windows),
        windows[0].start_s,
        windows[-1].end_s,
        warnings,
    )


def attempt_windows(run: Run) -> list[Window]:
    """Per attempt, from its first process start (or the attempt before's end, if that is later) to its last record."""
    windows: list[Window] = []
    for attempt in run.attempts:
        start = min(rank.header.process_start_s for rank in attempt.ranks)
        end = max(rank.wall(rank.last_ns) for rank in attempt.ranks)
        before = windows[-1].end_s if windows else start
        start = max(start, before)
        windows.append(Window(start, max(start, end), start - before, world_size(attempt)))
    return windows


def _empty(basis: str) -> dict[str, float]:
    absent = {"host": {*ONLY_KERNELS, "step.host_gap"}, "device": set(ONLY_KERNELS)}.get(basis, set())
    return {name: 0.0 for name in ACCOUNT_LINES if name not in absent}


def _add(total: dict[str, float], lines: dict[str, float], weight: float) -> None:
    for name, seconds in lines.items():
        total[name] += weight * seconds


def _settle(lines: dict[str, float], wall_s: float) -> None:
    """Make the lines sum to the wall clock to the last bit that floating point holds."""
    rest = wall_s - sum(seconds for name, seconds in lines.items() if name != "unattributed")
    lines["unattributed"] = max(0.0, rest)


def _summarise(job: _RankJob) -> tuple[dict[str, float], list[Warning]]:
    """A rank's seconds by line over its attempt's window, and what is to be said of them."""
    rank, window, warnings = job.log, job.window, list[Warning]()
    lines = _empty(job.basis)
    phases = {name: seconds_in(rank, (name,)) for name in PHASES}
    book_profiling(rank, phases)
    # relative to the window, so that no digits are lost to the size of Unix time
    offset_s = rank.header.wall_s - window.start_s
    spans = [(span.name, span.start_ns, span.end_ns) for span in rank.spans if not span.inside_step]
    # until this rank's process began, the attempt was still starting
    names = ["startup", *(name for name, _, _ in spans)]
    late_s = max(0.0, rank.header.process_start_s - window.start_s)
    edges = np.array([(start, end) for _, start, end in spans], np.float64).reshape(-1, 2)
    edges = np.concatenate([[(0.0, late_s)], (edges - rank.header.monotonic_ns) / 1e9 + offset_s])
    step_ends = (column(rank, "end_ns") - rank.header.monotonic_ns) / 1e9 + offset_s
    durations = np.concatenate([sum(phases.values(), np.zeros(rank.steps)), edges[:, 1] - edges[:, 0]])
    ends = np.concatenate([step_ends, edges[:, 1]])
    kept, overlap_s = _without_overlap(ends - durations, ends, window.end_s - window.start_s)
    if overlap_s > max(0.001, OVERLAP_TOLERANCE * (window.end_s - window.start_s)):
        warnings.append(
            Warning(
                code="overlapping_records",
                message=f"rank {rank.header.rank}: {overlap_s:.3f} s of its records overlap each other or another "
                "attempt; each second went to the record that began first",
            )
        )
    is_lost = job.bounds.are_lost(column(rank, "step"))
    share = np.divide(kept, durations, out=np.zeros_like(kept), where=durations > 0)
    is_on_device = ~is_lost & (np.arange(rank.steps) >= job.steady_row)
    _add_steps(lines, rank, phases, share[: rank.steps], is_lost, is_on_device, job.recorded, warnings)
    last_step_s = float(step_ends[-1]) if rank.steps else 0.0
    for name, seconds, start in zip(names, kept[rank.steps :].tolist(), edges[:, 0].tolist(), strict=True):
        line = f"step.{name}" if name in STEP_PHASES else name
        if job.is_given_up and name in STEP_PHASES and start >= last_step_s - _NANOSECOND:
            line = "lost_steps"  # of a step that never ended
        lines[line if line in lines else "unattributed"] += seconds
    if job.is_given_up:
        lines["lost_steps"] += max(0.0, window.end_s - window.start_s - max(0.0, float(ends.max(initial=0.0))))
    _settle(lines, window.end_s - window.start_s)
    return lines, warnings


def _without_overlap(starts: Array, ends: Array, limit_s: float) -> tuple[Array, float]:
    """Seconds of each interval inside [0, limit_s] that no earlier interval covers, and the seconds so lost."""
    order = np.argsort(starts, kind="stable")
    first, last = starts[order], ends[order]
    covered = np.concatenate(([0.0], np.maximum.accumulate(last)))[:-1] if len(last) else last
    kept = np.maximum(0.0, np.minimum(last, limit_s) - np.maximum(first, np.maximum(covered, 0.0)))
    result = np.empty_like(kept)
    result[order] = kept
    return result, float((last - first).sum() - kept.sum())


def _add_steps(
    lines: dict[str, float],
    rank: RankLog,
    phases: dict[str, Array],
    share: Array,
    is_lost: NDArray[np.bool_],
    is_on_device: NDArray[np.bool_],
    recorded: WindowShares | None,
    warnings: list[Warning],
) -> None:
    """Add the steps' phases; those of steps not kept are lost, while what these did beside the step keeps its line."""
    is_split = bool(is_on_device.any())
    if is_split and recorded is not None:
        _add_recorded_steps(lines, phases, share, is_on_device, recorded)
    elif is_split:
        is_split = _add_device_steps(lines, rank, phases, share, is_on_device, warnings)
    on_host = ~is_lost & ~(is_on_device & is_split)
    for name, seconds in phases.items():
        if name not in STEP_PHASES:
            lines[name] += float((seconds * share).sum())
            continue
        lines[f"step.{name}"] += float((seconds * share)[on_host].sum())
        lines["lost_steps"] += float((seconds * share)[is_lost].sum())


def _add_recorded_steps(
    lines: dict[str, float], phases: dict[str, Array], share: Array, rows: NDArray[np.bool_], recorded: WindowShares
) -> None:
    """Split the steps in `rows` as the kernel windows were: by phase where host and device are one, else whole."""
    spent = {name: float((phases[name] * share)[rows].sum()) for name in STEP_PHASES}
    if not recorded.by_phase:
        for line, part in recorded.lines.items():
            lines[line] += part * sum(spent.values())
        return
    for name, seconds in spent.items():
        for line, part in (recorded.by_phase.get(name) or {f"step.{name}": 1.0}).items():
            lines[line] += part * seconds


def _add_device_steps(
    lines: dict[str, float],
    rank: RankLog,
    phases: dict[str, Array],
    share: Array,
    rows: NDArray[np.bool_],
    warnings: list[Warning],
) -> bool:
    """Split the steps in `rows` by what the device did; False where too few of them were sampled.

    The device's compute is timed on a sample of the steps and taken to be the same on average in the others. What a
    step took beyond it, the device waited: for the copy, for input, then for the host, each at most as long as the
    host was there. Single steps of host and device differ because the host runs ahead, so the waits of all steps are
    scaled to what the steps took altogether.
    """
    is_sampled = rows & np.isfinite(column(rank, "device_forward_ns"))
    if is_sampled.sum() < MIN_SAMPLED_STEPS:
        return False
    total = float(sum((phases[name] * share)[rows].sum() for name in STEP_PHASES))
    compute = np.zeros(rank.steps)
    split: dict[str, float] = {}
    for name in STEP_PHASES:
        values = np.nan_to_num(column(rank, f"device_{name}_ns")) / 1e9
        filled = np.where(is_sampled, values, values[is_sampled].mean())
        compute += filled
        split[f"step.{name}"] = float((filled * share)[rows].sum())
    computed = sum(split.values())
    if computed > total * (1 + DEVICE_TOLERANCE):
        warnings.append(
            Warning(
                code="device_time_exceeds_host",
                message=f"rank {rank.header.rank}: device events add up to {computed:.3f} s in {total:.3f} s of steps; "
                "the device lines are scaled to fit",
            )
        )
    for name, seconds in split.items():
        lines[name] += seconds * min(1.0, total / computed if computed > 0 else 0.0)
    waits = _split_waits(phases, np.maximum(0.0, sum(phases[name] for name in STEP_PHASES) - compute), share, rows)
    waited = sum(waits.values())
    scale = max(0.0, total - computed) / waited if waited > 0 else 0.0
    for name, seconds in waits.items():
        lines[name] += seconds * scale
    return True


def _split_waits(phases: dict[str, Array], wait: Array, share: Array, rows: NDArray[np.bool_]) -> dict[str, float]:
    """Seconds the device waited in `rows`, by what for."""
    waits = {}
    for name in ("host_to_device", "input_wait"):
        part = np.minimum(wait, phases[name])
        waits[f"step.{name}"] = float((part * share)[rows].sum())
        wait = wait - part
    waits["step.host_gap"] = float((wait * share)[rows].sum())
    return waits
