"""The `timeline` part of an analysis: a run over time in few enough points to be drawn."""

from __future__ import annotations

from typing import Annotated

import msgspec


def _says(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class TimelineBand(msgspec.Struct, kw_only=True):
    """One value per bin of steps: the lowest, the median and the highest, so that a single slow step stays visible."""

    low: list[float | None] = []
    median: list[float | None] = []
    high: list[float | None] = []


class TimelineSeries(msgspec.Struct, kw_only=True):
    """A reading over time, binned; bins without a sample are left out."""

    name: Annotated[str, _says("`process_rss_bytes`, `power_w`, …; the unit is in `unit`")]
    unit: str = ""
    source: Annotated[str, _says("whose reading it is: a device, a process, all ranks")] = ""
    node: int | None = None
    at_s: Annotated[list[float], _says("seconds since the first process start, middle of each bin")] = []
    low: list[float] = []
    median: list[float] = []
    high: list[float] = []


class TimelineEvent(msgspec.Struct, kw_only=True):
    """Something that happened at a moment, or lasted."""

    kind: Annotated[str, _says("`attempt`, `ended`, `warning`, `throttling`, or a phase such as `evaluation`")]
    at_s: Annotated[float, _says("seconds since the first process start")]
    until_s: float | None = None
    label: str = ""
    source: str = ""


class RankBins(msgspec.Struct, kw_only=True):
    """Ranks × bins of the last attempt's steps; each cell is the mean over the bin's steps."""

    ranks: list[int]
    at_s: Annotated[list[float], _says("seconds since the first process start, end of each bin")]
    first_step: list[int]
    last_step: list[int]
    values_s: Annotated[
        dict[str, list[list[float | None]]],
        _says("`step`, `input_wait`, `forward`, `backward`: per rank, seconds per step in each bin"),
    ]


class Timeline(msgspec.Struct, kw_only=True):
    """The run over time, in at most 600 bins a series; steps in equal numbers, readings in equal spans of time."""

    wall_s: Annotated[float, _says("from the first process start to the last record")]
    at_s: Annotated[list[float], _says("per bin of steps: when its last step ended")] = []
    attempt: Annotated[list[int], _says("per bin: the attempt that made its steps")] = []
    first_step: list[int] = []
    last_step: list[int] = []
    is_steady: Annotated[list[bool], _says("per bin: whether it lies behind its attempt's warm-up")] = []
    step_time_s: TimelineBand
    tokens_per_s: Annotated[TimelineBand | None, _says("of the job; null where tokens were not counted")] = None
    mfu: Annotated[list[float | None], _says("per bin: model FLOPs ÷ step time ÷ (peak × devices), exact")] = []
    loss: Annotated[TimelineBand | None, _says("null unless the record has it")] = None
    phases_s: Annotated[
        dict[str, list[float | None]], _says("phase: seconds per step in each bin, mean over the ranks")
    ] = {}
    events: list[TimelineEvent] = []
    events_total: Annotated[dict[str, int], _says("kind: how many there were, where not all are listed")] = {}
    memory: list[TimelineSeries] = []
    telemetry: list[TimelineSeries] = []
    ranks: Annotated[RankBins | None, _says("null with one rank")] = None
