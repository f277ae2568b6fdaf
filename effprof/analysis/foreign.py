"""The analysis of another tool's log: what it allows, null for the rest, and its own claims beside them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effprof.analysis.analyze import Examined
from effprof.analysis.foreign_claims import claimed_median
from effprof.analysis.foreign_given import Given, add_given
from effprof.analysis.foreign_mfu import Recomputed, recompute
from effprof.analysis.foreign_steps import ForeignSteps, foreign_steps
from effprof.analysis.model import (
    Account,
    Analysis,
    Claimed,
    DeviceGroup,
    Efficiency,
    Hardware,
    MemoryFigures,
    Rate,
    RunFacts,
    Source,
    StepCounts,
    StepTime,
    Warning,
)
from effprof.analysis.steps import JobSteps
from effprof.metrics.intervals import median_interval
from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.sniff import read_foreign

__all__ = ["Given", "examine_foreign"]

Array = NDArray[np.float64]
_ENDING = "another tool's log: it does not say how the run ended"


def examine_foreign(path: str, given: Given | None = None) -> Examined:
    """Analyse another tool's log.

    Args:
        path: a file, or a directory that one tool wrote.
        given: what the log lacks; it takes the place of what the log says.

    Raises:
        EffprofError: it is no log of a known tool, or holds nothing of a training.
    """
    log = read_foreign(path)
    given = given or Given()
    add_given(log, given)
    steps = foreign_steps(log)
    recomputed = recompute(log, steps, given)
    return Examined(_analysis(log, steps, recomputed), _job_steps(log, steps))


def _analysis(log: ForeignLog, steps: ForeignSteps, recomputed: Recomputed) -> Analysis:
    world = int(log.facts.get("world_size") or 1)
    device = recomputed.device or str(log.facts.get("device") or "unknown device")
    return Analysis(
        run=RunFacts(
            id=log.path.rstrip("/").rpartition("/")[2],
            path=log.path,
            framework=log.framework,
            framework_version=str(log.facts.get("framework_version", "")),
            world_size=world,
            attempts=1,
            started_at=_clock(log, 0),
            ended_at=_clock(log, -1),
            ended="completed",
            ended_reason=_ENDING,
            model={"name": recomputed.model} if recomputed.model else {},
            flops={"source": "closed_form"} if recomputed.conventions.exact.flops_per_token else {},
            config=_config(log),
        ),
        source=_source(log),
        efficiency=_efficiency(steps, recomputed),
        account=_account(log, steps),
        memory=MemoryFigures(),
        ranks=[],
        hardware=Hardware(devices=[DeviceGroup(name=device, type="unknown", count=world)], hosts=[]),
        warnings=[*_warnings(log, steps), *recomputed.warnings],
    )


def _source(log: ForeignLog) -> Source:
    job, device = claimed_median(log, "tokens_per_s"), claimed_median(log, "tokens_per_s_per_device")
    return Source(
        format=log.format,
        steps=log.records,
        claimed=Claimed(
            mfu=claimed_median(log, "mfu"),
            tflops_per_device=claimed_median(log, "tflops_per_device"),
            tokens_per_s=device if job is None else job,
            tokens_per_s_scope=None if job is None and device is None else "device" if job is None else "job",
        ),
    )


def _efficiency(steps: ForeignSteps, recomputed: Recomputed) -> Efficiency:
    seconds = _steady(steps, steps.seconds)
    return Efficiency(
        mfu=recomputed.mfu,
        mfu_wall=recomputed.nothing,
        hfu=recomputed.nothing,
        conventions=recomputed.conventions,
        steps=StepCounts(
            total=int(np.nansum(steps.covers)), steady=int(np.nansum(steps.covers[steps.is_steady])), rules=[steps.rule]
        ),
        tokens_per_step=_mean(_steady(steps, steps.tokens)),
        samples_per_step=_mean(_steady(steps, steps.samples)),
        padding_share=None,
        loss_token_share=None,
        step_time_s=StepTime(
            median=float(np.median(seconds)) if len(seconds) else None,
            p95=float(np.percentile(seconds, 95)) if len(seconds) else None,
            ci95=median_interval(seconds),
        ),
        tokens_per_s=_rate(steps, steps.tokens_per_s),
        tokens_per_s_per_device=_rate(steps, steps.tokens_per_s_per_device),
        samples_per_s=_rate(steps, steps.samples_per_s),
        model_flops_per_s_per_device=Rate(median=recomputed.flops_per_s_per_device),
    )


def _steady(steps: ForeignSteps, values: Array) -> Array:
    """Known values of the steady records; of all records where none of those is known."""
    kept = values[steps.is_steady & np.isfinite(values)]
    return kept if len(kept) else values[np.isfinite(values)]


def _rate(steps: ForeignSteps, values: Array) -> Rate:
    kept = _steady(steps, values)
    if not len(kept):
        return Rate()
    return Rate(median=float(np.median(kept)), p5=float(np.percentile(kept, 5)), ci95=median_interval(kept))


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None


def _account(log: ForeignLog, steps: ForeignSteps) -> Account:
    """Time in steps by what the log tells of it; the steps' own time is all the wall clock that is known."""
    known = np.isfinite(steps.seconds * steps.covers)
    weights = steps.covers[known]
    total = float((steps.seconds[known] * weights).sum())
    lines = {}
    for line, column in (("step.input_wait", "input_wait_s"), ("step.generation", "generation_s")):
        if log.has(column):
            lines[line] = float(np.nansum(log.columns[column][known] * weights))
    lines["step.other"] = max(0.0, total - sum(lines.values()))
    if log.evaluation_s:
        lines["evaluation"] = log.evaluation_s
    return Account(basis="host", wall_s=sum(lines.values()), lines=lines)


def _config(log: ForeignLog) -> dict[str, Any]:
    """Facts of the log that have a name among a run's settings."""
    names = {"micro_batch": "micro_batch", "accumulate": "accumulate", "global_batch": "global_batch"}
    names |= {"sequence_length": "sequence_length", "dtype": "dtype", "layers": "layers", "hidden": "hidden_size"}
    return {ours: log.facts[theirs] for theirs, ours in names.items() if theirs in log.facts}


def _warnings(log: ForeignLog, steps: ForeignSteps) -> list[Warning]:
    warnings = [Warning(code=code, message=message) for code, message in log.notes]
    for figure, how in steps.derived.items():
        warnings.append(Warning(code="derived", message=f"{figure} is made from {how}"))
    warnings += [
        Warning(code="running_average", message=f"{name} is a running average: a claim, no step's")
        for name in sorted(log.averages)
        if log.has(name)
    ]
    if log.repeated:
        warnings.append(
            Warning(
                code="repeated_steps",
                message=f"{log.repeated} records were made again after a restart: the later count",
            )
        )
    missing = [
        name
        for name, values in (("step_time_s", steps.seconds), ("tokens_per_s", steps.tokens_per_s))
        if not np.isfinite(values).any()
    ]
    if missing:
        warnings.append(
            Warning(code="not_in_log", message=f"{', '.join(missing)}: the log does not say enough (null, not 0)")
        )
    if not log.facts.get("world_size"):
        warnings.append(
            Warning(code="devices_unknown", message="the log does not say how many devices it ran on: give --devices")
        )
    return warnings


def _clock(log: ForeignLog, index: int) -> str:
    times = log.columns.get("time_s")
    if times is None or not np.isfinite(times[index]):
        return ""
    moment = datetime.fromtimestamp(float(times[index]), timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _job_steps(log: ForeignLog, steps: ForeignSteps) -> JobSteps:
    nothing = np.zeros(log.records, dtype=np.bool_)
    devices = np.full(log.records, float(log.facts.get("world_size") or np.nan))
    # resampling needs rates that are whole: records without one take no part
    is_known = np.isfinite(steps.seconds) if np.isfinite(steps.seconds).any() else ~nothing
    return JobSteps(
        attempt=np.zeros(log.records, dtype=np.int64),
        step=np.nan_to_num(steps.step).astype(np.int64),
        seconds=steps.seconds,
        devices=devices,
        counts={"tokens": steps.tokens_per_s * steps.seconds, "samples": steps.samples_per_s * steps.seconds},
        flops={"exact": np.full(log.records, np.nan)},
        is_steady=steps.is_steady & is_known,
        is_repeated=nothing,
        is_lost=nothing,
        is_profiled=nothing,
        rules=[steps.rule],
        rank_rows=[],
    )
