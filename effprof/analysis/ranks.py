"""Ranks side by side: each one's steps, rate and account, and how far they lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from effprof.analysis.account import RunAccount
from effprof.analysis.efficiency import step_time
from effprof.analysis.model import Account, RankFigures, RankSpread, Spread
from effprof.analysis.steps import JobSteps, column, seconds_in
from effprof.runlog.parallel import in_order
from effprof.runlog.reader import RankLog, Run
from effprof.runlog.schema import STEP_PHASES

if TYPE_CHECKING:
    from concurrent.futures import Executor

Array = NDArray[np.float64]
_SPREAD_PHASES = ("input_wait", "forward", "backward")


@dataclass(frozen=True)
class _RankJob:
    """The last log of a rank, the rows of it that are steady steps, and its account."""

    log: RankLog
    rows: NDArray[np.int64]
    account: Account


def measure_ranks(
    run: Run, steps: JobSteps, account: RunAccount, executor: Executor | None = None
) -> tuple[list[RankFigures], RankSpread | None]:
    """Figures of every rank of the last attempt that it took part in, and their spread where there are several.

    Args:
        run: the run's record.
        steps: as `job_steps` aligned them.
        account: with each rank's.
        executor: reduces several ranks at a time; the figures are the same without one.
    """
    last_logs = {number: _last_log(run, number) for number in account.ranks}
    jobs = [
        _RankJob(log, steps.steady_rows(place, number), account.ranks[number])
        for number, (place, log) in last_logs.items()
    ]
    figures = []
    seconds: dict[str, dict[int, float]] = {name: {} for name in ("step", *_SPREAD_PHASES)}
    for own, medians in in_order(executor, _summarise, jobs):
        figures.append(own)
        if last_logs[own.rank][0] == len(run.attempts) - 1:
            for name, value in medians.items():
                seconds[name][own.rank] = value
    if len(figures) < 2:
        return figures, None
    spread = RankSpread(
        step_time_s=_spread(seconds["step"]),
        input_wait_s=_spread(seconds["input_wait"]),
        forward_s=_spread(seconds["forward"]),
        backward_s=_spread(seconds["backward"]),
    )
    return figures, spread


def _summarise(job: _RankJob) -> tuple[RankFigures, dict[str, float]]:
    """A rank's figures, and the medians of its steps and phases in seconds; none of these without steady steps."""
    log, rows = job.log, job.rows
    own = seconds_in(log, STEP_PHASES)[rows]
    rates = column(log, "tokens")[rows] / np.where(own > 0, own, np.nan)
    figures = RankFigures(
        rank=log.header.rank,
        host=log.header.host,
        device=device_label(log.header.device),
        data_parallel_rank=log.header.data_parallel_rank,
        steps=log.steps,
        step_time_s=step_time(own),
        tokens_per_s=float(np.nanmedian(rates)) if np.isfinite(rates).any() else None,
        account=job.account,
        training_thread_busy=_thread_busy(log, rows),
    )
    if not len(rows):
        return figures, {}
    phases = {phase: float(np.median(seconds_in(log, (phase,))[rows])) for phase in _SPREAD_PHASES}
    return figures, {"step": float(np.median(own)), **phases}


def _thread_busy(log: RankLog, rows: NDArray[np.int64]) -> float | None:
    """Share of the steady steps' time in which the training thread was on a processor; None below two readings."""
    if not len(rows):
        return None
    ends = column(log, "end_ns")[rows]
    read = [
        (line.monotonic_ns, line.training_thread_cpu_ns)
        for line in log.memory
        if line.training_thread_cpu_ns is not None and ends[0] <= line.monotonic_ns <= ends[-1]
    ]
    if len(read) < 2:
        return None
    (began, before), (ended, after) = read[0], read[-1]
    return min(1.0, max(0.0, (after - before) / (ended - began))) if ended > began else None


def device_label(device: dict[str, Any]) -> str:
    """A device's name for a table: what it is, and which of several."""
    name = str(device.get("name") or device.get("type") or "unknown device")
    index = device.get("index")
    return name if index is None or device.get("type") == "cpu" else f"{name} #{index}"


def _last_log(run: Run, number: int) -> tuple[int, RankLog]:
    for place in range(len(run.attempts) - 1, -1, -1):
        for rank in run.attempts[place].ranks:
            if rank.header.rank == number:
                return place, rank
    raise LookupError(f"no log of rank {number}")


def _spread(seconds: dict[int, float]) -> Spread | None:
    if not seconds:
        return None
    lowest, highest = min(seconds, key=lambda rank: seconds[rank]), max(seconds, key=lambda rank: seconds[rank])
    return Spread(
        lowest=seconds[lowest],
        median=float(np.median(list(seconds.values()))),
        highest=seconds[highest],
        lowest_rank=lowest,
        highest_rank=highest,
    )
