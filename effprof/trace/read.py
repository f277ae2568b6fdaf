"""One trace file → one rank's device activity and what launched it, as numpy columns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from effprof.errors import EffprofError
from effprof.trace import collect
from effprof.trace.collect import COPY, KERNEL, NANOSECONDS_FROM, SET, Collective, Collector
from effprof.trace.intervals import Flags, Floats, Indices, median
from effprof.trace.lanes import task_kind
from effprof.trace.names import COMMUNICATION, kernel_family
from effprof.trace.stream import EventStream

__all__ = ["COPY", "KERNEL", "SET", "Activity", "Annotations", "Problem", "RankTrace", "read_trace"]

_DAY_US = 86400e6
_RANK_IN_NAME = re.compile(r"rank[-_ ]?(\d{1,7})", re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """Something a reader of the numbers should know."""

    code: str
    message: str


@dataclass(frozen=True)
class Activity:
    """Kernels, copies and sets of the rank's devices, in order of start. Times in µs after `RankTrace.origin_us`.

    `launch_start`, `launch_end` and `launch_thread` are the host call that issued each; nan and -1 where unknown.
    """

    start: Floats
    end: Floats
    kind: Indices  # KERNEL, COPY or SET
    name: Indices
    correlation: Indices
    external: Indices
    collective: Indices  # index into RankTrace.collectives; -1 without metadata
    sequence: Indices
    elements: Indices
    bytes: Indices
    device: Indices
    is_communication: Flags
    launch_start: Floats
    launch_end: Floats
    launch_thread: Indices

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Annotations:
    """Named spans of the host's timeline, in order of start; µs after `RankTrace.origin_us`."""

    start: Floats
    end: Floats
    name: Indices
    thread: Indices
    role: Indices

    def of(self, role: int) -> Annotations:
        keep = self.role == role
        return Annotations(self.start[keep], self.end[keep], self.name[keep], self.thread[keep], self.role[keep])


@dataclass(frozen=True)
class Operators:
    """Calls of operators whose shapes are recorded, in order of start."""

    start: Floats
    end: Floats
    thread: Indices
    external: Indices
    flops: Floats
    bytes: Floats
    dtype: list[str]


@dataclass(frozen=True)
class RankTrace:
    """What one trace file tells about one rank."""

    path: str
    rank: int
    names_rank: bool
    world_size: int | None
    origin_us: float  # Unix time where the trace gives one, else the host's own clock
    names: list[str]
    families: list[str]  # per name
    activity: Activity
    annotations: Annotations
    operators: Operators
    collectives: list[Collective]
    devices: list[dict[str, Any]]  # deviceProperties
    events: int
    bytes: int
    lost_bytes: int | None  # None where the file is whole
    problems: list[Problem] = field(default_factory=list)


def read_trace(path: str) -> RankTrace:
    """Read a Kineto or Chrome trace (`.json`, `.json.gz`) in bounded memory.

    Args:
        path: local, or in an object store (`s3://…`).

    Raises:
        EffprofError: no such file, no trace, empty, damaged, or built to exhaust memory or time. A file that is cut
            off is read as far as it goes: `lost_bytes` is then set.
    """
    stream, collector = EventStream(path), Collector()
    for group in stream.groups():
        collector.take(group)
    if not stream.events:
        what = "is cut off before its first whole event" if stream.is_truncated else "holds no events"
        raise EffprofError(f"{path}: {what}", "record the trace again")
    return _build(stream, collector)


def _build(stream: EventStream, collector: Collector) -> RankTrace:
    path = stream.source.path
    problems: list[Problem] = []
    origin = collector.origin or 0
    scale = 1e-3 if abs(origin) >= NANOSECONDS_FROM else 1.0
    names = list(collector.names)
    families = _families(collector, names)
    activity, dropped = _activity(collector, names, families, scale)
    if dropped:
        problems.append(
            Problem(
                "trace_clock",
                f"{path}: {dropped:,} device activities lie more than a day from the others and were left out",
            )
        )
    unusable = stream.unusable + collector.unusable
    if unusable:
        problems.append(
            Problem("trace_events_skipped", f"{path}: {unusable:,} events without a usable time or shape were left out")
        )
    info = _distributed_info(stream.frame)
    rank = _whole(info.get("rank"))
    world_size = _whole(info.get("world_size"))
    named = _RANK_IN_NAME.search(path.rpartition("/")[2])
    base_ns = stream.frame.get("baseTimeNanoseconds")
    base_us = base_ns * 1e-3 if isinstance(base_ns, int) and 0 < base_ns < 1 << 62 else 0.0
    devices = stream.frame.get("deviceProperties")
    return RankTrace(
        path=path,
        rank=rank if rank is not None else int(named[1]) if named else 0,
        names_rank=rank is not None,
        world_size=world_size,
        origin_us=origin * scale + base_us,
        names=names,
        families=families,
        activity=activity,
        annotations=_annotations(collector, scale),
        operators=_operators(collector, scale),
        collectives=list(collector.collectives),
        devices=[device for device in devices if isinstance(device, dict)] if isinstance(devices, list) else [],
        events=stream.events,
        bytes=stream.source.read_bytes,
        lost_bytes=stream.lost_bytes if stream.is_truncated else None,
        problems=problems,
    )


def _families(collector: Collector, names: list[str]) -> list[str]:
    """Per name the family of the kernels of that name; empty for what names something else."""
    used = {*collector.activity.columns["name"], *collector.lanes.table.columns["name"]}
    return [kernel_family(name) if index in used else "" for index, name in enumerate(names)]


def _activity(collector: Collector, names: list[str], families: list[str], scale: float) -> tuple[Activity, int]:
    """(the rank's device activity in order of start, how many rows were left out for garbage times)."""
    table = collector.activity
    columns: dict[str, Any] = {name: table.column(name) for name in table.columns}
    start = table.starts(scale)
    end = table.ends(scale)
    family_is = np.array([family == COMMUNICATION for family in families], dtype=bool)
    # Kineto's metadata first, then the name; metadata of a group without a collective's name still counts
    is_communication = (columns["kind"] == KERNEL) & (
        (columns["collective"] >= 0) | (family_is[columns["name"]] if len(names) else False)
    )
    lanes = _lane_rows(collector, names, scale)
    if lanes:
        start, end = np.r_[start, lanes["start"]], np.r_[end, lanes["end"]]
        is_communication = np.r_[is_communication, lanes["is_communication"].astype(bool)]
        count = len(lanes["start"])
        columns = {
            key: np.r_[column, lanes[key].astype(np.intp) if key in lanes else np.full(count, -1, dtype=np.intp)]
            for key, column in columns.items()
        }
    keep = np.argsort(start, kind="stable")
    dropped = 0
    if len(start):
        sane = np.abs(start[keep] - median(start)) < _DAY_US
        dropped = len(keep) - int(sane.sum())
        keep = keep[sane]
    launch = _launches(collector, columns["correlation"][keep], scale)
    start = start[keep]
    return (
        Activity(
            start=start,
            end=end[keep],
            is_communication=is_communication[keep],
            **{key: column[keep] for key, column in columns.items()},
            **launch,
        ),
        dropped,
    )


def _launches(collector: Collector, wanted: Indices, scale: float) -> dict[str, Any]:
    """The call that issued each activity, found by its correlation id (the last such call before the others)."""
    table = collector.launches
    found = {
        "launch_start": np.full(len(wanted), np.nan),
        "launch_end": np.full(len(wanted), np.nan),
        "launch_thread": np.full(len(wanted), -1, dtype=np.intp),
    }
    if not len(table) or not len(wanted):
        return found
    correlation = table.column("correlation")
    order = np.argsort(correlation, kind="stable")
    correlation = correlation[order]
    index = np.minimum(np.searchsorted(correlation, wanted), len(correlation) - 1)
    is_known = (correlation[index] == wanted) & (wanted > 0)
    rows = order[index[is_known]]
    found["launch_start"][is_known] = table.starts(scale)[rows]
    found["launch_end"][is_known] = table.ends(scale)[rows]
    found["launch_thread"][is_known] = table.column("thread")[rows]
    return found


def _lane_rows(collector: Collector, names: list[str], scale: float) -> dict[str, npt.NDArray[Any]]:
    """Device activity of an export that tells kinds by process; empty where there is none."""
    table = collector.lanes.table
    if not len(table):
        return {}
    lane_kinds = collector.lanes.kinds()
    lane, name, task = table.column("lane"), table.column("name"), table.column("task")
    kinds = [task_kind(lane_kinds[at], names[of], names[as_]) for at, of, as_ in zip(lane, name, task, strict=True)]
    keep = np.array([kind is not None for kind in kinds], dtype=bool)
    if not keep.any():
        return {}
    is_copy = np.array([kind == "copy" for kind in kinds], dtype=bool)
    is_communication = np.array(
        [kind == "communication" or (kind == "kernel" and kernel_family(names[of]) == COMMUNICATION)
         for kind, of in zip(kinds, name, strict=True)],
        dtype=bool,
    )  # fmt: skip
    return {
        "start": table.starts(scale)[keep],
        "end": table.ends(scale)[keep],
        "kind": np.where(is_copy, COPY, KERNEL)[keep],
        "name": name[keep],
        "is_communication": is_communication[keep],
    }


def _annotations(collector: Collector, scale: float) -> Annotations:
    table = collector.annotations
    start = table.starts(scale)
    order = np.argsort(start, kind="stable")
    return Annotations(
        start=start[order],
        end=table.ends(scale)[order],
        name=table.column("name")[order],
        thread=table.column("thread")[order],
        role=table.column("role")[order],
    )


def _operators(collector: Collector, scale: float) -> Operators:
    table = collector.operators
    start = table.starts(scale)
    order = np.argsort(start, kind="stable")
    work = [collector.work[index] for index in table.column("work")[order]]
    return Operators(
        start=start[order],
        end=table.ends(scale)[order],
        thread=table.column("thread")[order],
        external=table.column("external")[order],
        flops=np.array([one[0] for one in work]),
        bytes=np.array([one[1] for one in work]),
        dtype=[one[2] for one in work],
    )


def _distributed_info(frame: dict[str, Any]) -> dict[str, Any]:
    info = frame.get("distributedInfo")
    return info if isinstance(info, dict) else {}


def _whole(value: Any) -> int | None:
    """A rank or a count, given as a number or as text."""
    number = collect.integer(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else -1
    return number if number >= 0 else None
