"""From a run's record to its Analysis: the one place where all parts meet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

from effprof.analysis.account import RunAccount, account
from effprof.analysis.clocks import measure_derating
from effprof.analysis.efficiency import find_peak, measure_efficiency
from effprof.analysis.goodput import measure_goodput
from effprof.analysis.hardware import describe_hardware
from effprof.analysis.memory import measure_memory
from effprof.analysis.model import Analysis, RunFacts, Warning
from effprof.analysis.moe import measure_moe
from effprof.analysis.operators import operator_figures
from effprof.analysis.outcome import outcome
from effprof.analysis.ranks import measure_ranks
from effprof.analysis.steps import JobSteps, job_steps, world_size
from effprof.analysis.waterfall import Facts, make_waterfall
from effprof.analysis.windows import matrix_work, window_accounts, window_families
from effprof.runlog.reader import Run
from effprof.runlog.schema import BEGAN

if TYPE_CHECKING:
    from concurrent.futures import Executor

MAX_PER_CODE = 5  # distinct messages of one kind that are listed


@dataclass(frozen=True)
class Examined:
    """An analysis together with the steps it rests on, which a comparison resamples."""

    analysis: Analysis
    steps: JobSteps


def analyze(
    run: Run, *, peak_tflops: float | None = None, now_s: float | None = None, executor: Executor | None = None
) -> Analysis:
    """Everything that the record says about a run.

    Args:
        run: as `effprof.runlog.reader.open_run` gives it.
        peak_tflops: dense peak of one device in TFLOP/s, in place of the recorded one.
        now_s: Unix time that decides whether the run is still going; now by default.
        executor: a process pool, or `dask.distributed.Client.get_executor()`, that reduces the ranks to their
            summaries; the analysis is the same to the last bit without one.
    """
    return examine(run, peak_tflops=peak_tflops, now_s=now_s, executor=executor).analysis


def examine(
    run: Run, *, peak_tflops: float | None = None, now_s: float | None = None, executor: Executor | None = None
) -> Examined:
    """`analyze`, with the steps kept."""
    steps, step_warnings = job_steps(run)
    time_account = account(run, steps, executor)
    device_type = str(run.attempts[-1].ranks[0].header.device.get("type", ""))
    peak = find_peak(run.record, device_type, peak_tflops)
    efficiency, efficiency_warnings = measure_efficiency(run.record, steps, peak, time_account.wall_device_s)
    memory, memory_warnings = measure_memory(run)
    ranks, spread = measure_ranks(run, steps, time_account, executor)
    kernels, kernel_warnings = window_accounts(run)
    moe, moe_warnings = measure_moe(run, kernels)
    ended, reason, end_warnings = outcome(run, time.time() if now_s is None else now_s)
    analysis = Analysis(
        run=_facts(run, time_account, ended, reason),
        efficiency=efficiency,
        account=time_account.job,
        goodput=measure_goodput(time_account.job, efficiency.steps.total),
        waterfall=make_waterfall(
            time_account.job,
            efficiency,
            Facts(
                recompute_share=run.record.flops.recompute_share,
                families=window_families(run),
                matrix_work=matrix_work(kernels),
                derating=measure_derating(run, steps, peak.flops_per_s),
            ),
        ),
        kernel_account=kernels,
        operators=operator_figures(run, time_account.job),
        memory=memory,
        moe=moe,
        ranks=ranks,
        rank_spread=spread,
        hardware=describe_hardware(run),
        warnings=_distinct(
            [
                *end_warnings,
                *efficiency_warnings,
                *step_warnings,
                *time_account.warnings,
                *_recorded_warnings(run, has_peak=peak.flops_per_s is not None),
                *memory_warnings,
                *moe_warnings,
                *kernel_warnings,
            ]
        ),
    )
    return Examined(analysis, steps)


def _facts(run: Run, time_account: RunAccount, ended: str, reason: str) -> RunFacts:
    record = run.record
    return RunFacts(
        id=record.id,
        path=run.path,
        framework=record.framework,
        framework_version=record.framework_version,
        world_size=world_size(run.attempts[-1]),
        attempts=len(run.attempts),
        started_at=_iso(time_account.start_s),
        ended_at=_iso(time_account.end_s),
        ended=ended,
        ended_reason=reason,
        model=record.model,
        config=record.config,
        parallel=record.parallel,
        software=record.software,
        command=record.command,
        flops=msgspec.to_builtins(record.flops),
    )


def _recorded_warnings(run: Run, has_peak: bool) -> list[Warning]:
    recorded = [
        Warning(code=str(w.get("code", "warning")), message=str(w.get("message", ""))) for w in run.record.warnings
    ]
    problems = [Warning(code=problem.code, message=problem.message) for problem in run.problems]
    dropped = sum(rank.end.dropped_records for attempt in run.attempts for rank in attempt.ranks if rank.end)
    if dropped:
        problems.append(
            Warning(code="dropped_records", message=f"{dropped} records were dropped because the writer fell behind")
        )
    events = [
        # a warning's own code travels beside it, so that it is the same one as in run.json
        Warning(code=str(event.data.get("code") or event.name), message=event.message)
        for attempt in run.attempts
        for rank in attempt.ranks
        for event in rank.events
        if event.name != BEGAN  # a fact, for `resumes.py`
    ]
    found = [*recorded, *problems, *events]
    # a peak that was given to the analysis ends the search for one that the run complained about
    return [warning for warning in found if not (has_peak and warning.code == "no_peak")]


def _distinct(warnings: list[Warning]) -> list[Warning]:
    """Each warning once, in order, and a few of those that differ only in their message: ranks say the same."""
    groups: dict[str, dict[str, None]] = {}
    for warning in warnings:
        groups.setdefault(warning.code, {})[warning.message] = None
    distinct = []
    for code, messages in groups.items():
        shown = list(messages)[:MAX_PER_CODE]
        distinct += [Warning(code=code, message=message) for message in shown]
        if len(messages) > len(shown):
            distinct.append(Warning(code=code, message=f"… and {len(messages) - len(shown)} more of {code}"))
    return distinct


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
