"""How a run does right now: the figures of `analyze`, of its latest steps alone."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np

from effprof.analysis.efficiency import find_peak, measure_efficiency
from effprof.analysis.hardware import split_reading
from effprof.analysis.model import Rate, Share, Warning
from effprof.analysis.outcome import outcome
from effprof.analysis.steps import JobSteps, column, job_steps, seconds_in, world_size
from effprof.runlog.reader import RankLog, Run
from effprof.runlog.schema import BEGAN, PHASES, Probe

SCHEMA = "effprof.watch/1"
# Phases outside of a step that are worth a line each time.
_HAPPENED = ("compile", "evaluation", "checkpoint")


def _says(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class Reporting(msgspec.Struct, kw_only=True):
    """The job's processes."""

    world_size: int
    reporting: Annotated[int, _says("ranks whose log is there")]
    behind_steps: Annotated[int, _says("steps between the foremost and the hindmost rank's latest step")]
    longest_wait_rank: Annotated[int | None, _says("rank that waits longest for its batches; null for a single one")]
    longest_wait_s: Annotated[float | None, _says("its input wait per step")]


class DeviceNow(msgspec.Struct, kw_only=True):
    """The latest readings of one device."""

    device: str
    name: str | None
    readings: Annotated[dict[str, float | None], _says("reading → value, in the unit of its name; null: not read")]


class StepNow(msgspec.Struct, kw_only=True):
    """Step times of the window."""

    last: float | None
    median: float | None
    p95: float | None


class Watch(msgspec.Struct, kw_only=True):
    """`effprof watch --json`: one such line per look."""

    schema: str = SCHEMA
    id: str
    path: str
    framework: str
    attempt: int
    ended: Annotated[str, _says("`running`, `completed`, `failed` or `killed`")]
    ended_reason: str
    age_s: Annotated[float, _says("since the last record")]
    step: Annotated[int | None, _says("latest optimizer step that all ranks finished; null before the first")]
    max_steps: Annotated[int | None, _says("where the training stops, where that is on record")]
    window_steps: Annotated[int, _says("latest steps that the figures below rest on")]
    step_time_s: StepNow
    mfu: Share
    tokens_per_s: Rate
    tokens_per_s_per_device: Rate
    samples_per_s: Rate
    loss: Annotated[float | None, _says("of the latest step, mean over ranks")]
    phases: Annotated[dict[str, float], _says("phase → share of the window's time, mean over ranks")]
    memory_bytes: Annotated[int | None, _says("allocator's latest use, largest of all ranks; on a CPU resident memory")]
    peak_memory_bytes: Annotated[int | None, _says("the same, its peak so far")]
    ranks: Reporting
    devices: list[DeviceNow]
    events: Annotated[list[str], _says("what happened lately, oldest first")]
    warnings: list[Warning]


def current(run: Run, now_s: float, peak_tflops: float | None = None) -> Watch:
    """What a run does now.

    Args:
        run: with the latest steps of its newest attempt, as `effprof.runlog.tail.RunTail` reads it.
        now_s: Unix time.
        peak_tflops: dense peak of one device in TFLOP/s, in place of the recorded one.
    """
    attempt = run.attempts[-1]
    ended, reason, end_warnings = outcome(run, now_s)
    steps, step_warnings = job_steps(run)
    peak = find_peak(run.record, str(attempt.ranks[0].header.device.get("type", "")), peak_tflops)
    device_s = float((steps.seconds * steps.devices).sum())
    efficiency, efficiency_warnings = measure_efficiency(run.record, steps, peak, device_s)
    limit = run.record.config.get("max_steps")
    return Watch(
        id=run.record.id,
        path=run.path,
        framework=run.record.framework,
        attempt=attempt.index,
        ended=ended,
        ended_reason=reason,
        age_s=max(0.0, now_s - max(rank.wall(rank.last_ns) for rank in attempt.ranks)),
        step=int(steps.step[-1]) if len(steps.step) else None,
        max_steps=limit if isinstance(limit, int) and limit > 0 else None,
        window_steps=len(steps.step),
        step_time_s=StepNow(
            last=float(steps.seconds[-1]) if len(steps.seconds) else None,
            median=efficiency.step_time_s.median,
            p95=efficiency.step_time_s.p95,
        ),
        mfu=efficiency.mfu,
        tokens_per_s=efficiency.tokens_per_s,
        tokens_per_s_per_device=efficiency.tokens_per_s_per_device,
        samples_per_s=efficiency.samples_per_s,
        loss=_latest_loss(attempt.ranks, steps),
        phases=_phase_shares(attempt.ranks),
        memory_bytes=_largest(attempt.ranks, "allocated_bytes", "process_rss_bytes"),
        peak_memory_bytes=_largest(attempt.ranks, "peak_allocated_bytes", "process_peak_rss_bytes"),
        ranks=_reporting(run),
        devices=_devices(run),
        events=_events(attempt.ranks),
        warnings=[*end_warnings, *efficiency_warnings, *(each for each in step_warnings if each.code != "not_steady")],
    )


def _latest_loss(ranks: list[RankLog], steps: JobSteps) -> float | None:
    values = [column(rank, "loss")[steps.rank_rows[-1][rank.header.rank]] for rank in ranks]
    latest = [own[known[-1]] for own in values if len(known := np.flatnonzero(~np.isnan(own)))]
    return float(np.mean(latest)) if latest else None


def _phase_shares(ranks: list[RankLog]) -> dict[str, float]:
    seconds = {name: float(sum(seconds_in(rank, [name]).sum() for rank in ranks)) for name in PHASES}
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items() if value > 0} if total else {}


def _largest(ranks: list[RankLog], *names: str) -> int | None:
    """Of the first counter that any rank has a value of."""
    for name in names:
        values = [value for rank in ranks for line in rank.memory[-1:] if (value := getattr(line, name)) is not None]
        if values:
            return int(max(values))
    return None


def _reporting(run: Run) -> Reporting:
    ranks = run.attempts[-1].ranks
    reached = [float(np.nanmax(column(rank, "step"))) for rank in ranks if rank.steps]
    waits = {rank.header.rank: float(seconds_in(rank, ["input_wait"]).mean()) for rank in ranks if rank.steps}
    longest = max(waits, key=lambda rank: waits[rank]) if len(waits) > 1 else None
    return Reporting(
        world_size=world_size(run.attempts[-1]),
        reporting=len(ranks),
        behind_steps=int(max(reached) - min(reached)) if reached else 0,
        longest_wait_rank=longest,
        longest_wait_s=None if longest is None else waits[longest],
    )


def _devices(run: Run) -> list[DeviceNow]:
    found: dict[str, DeviceNow] = {}
    for node in run.attempts[-1].nodes:
        names = {str(each.get("key")): each.get("name") for probe in node.probes for each in _listed(probe)}
        meaning = {name: each for probe in node.probes for name, each in probe.readings.items()}
        many = len(run.attempts[-1].nodes) > 1
        for sample in node.samples[-1:]:
            for key, value in sample.values.items():
                device, reading = split_reading(key, meaning)
                label = f"node {node.header.node} {device}" if many else device
                now = found.setdefault(label, DeviceNow(device=label, name=names.get(device), readings={}))
                is_number = isinstance(value, int | float) and math.isfinite(value)
                now.readings[reading] = float(value) if is_number and value is not None else None
    return list(found.values())


def _listed(probe: Probe) -> list[dict[str, str]]:
    return [dict(device) for device in probe.devices]


def _events(ranks: list[RankLog]) -> list[str]:
    """Events of all ranks, each once, and the evaluations and checkpoints of the window."""
    told: dict[str, float] = {}
    for rank in ranks:
        for event in rank.events:
            if event.name != BEGAN:
                told.setdefault(f"{event.name}: {event.message}", rank.wall(event.monotonic_ns))
    first = ranks[0]
    numbers, ends = column(first, "step"), column(first, "end_ns")
    for phase in _HAPPENED:
        spent = seconds_in(first, [phase])
        for row in np.flatnonzero(spent > 0.01):
            told[f"{phase} before step {numbers[row]:.0f}: {spent[row]:.2f} s"] = first.wall(float(ends[row]))
    return [text for text, _ in sorted(told.items(), key=lambda pair: pair[1])][-8:]
