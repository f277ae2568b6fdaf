"""Memory and telemetry over time: many ranks' and devices' samples brought into few bins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effprof.analysis.hardware import split_reading
from effprof.analysis.timeline_model import TimelineSeries
from effprof.runlog.reader import Run
from effprof.runlog.schema import Memory

Array = NDArray[np.float64]

READING_BINS = 300
MEMORY_BINS = 600
# A reading of more devices than this is drawn as one band over all of them.
MAX_DEVICES = 8
MEMORY_COUNTERS = (
    "allocated_bytes",
    "reserved_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "process_rss_bytes",
)
# Readings that do not change, or that only mean something as an event.
NOT_DRAWN = ("memory_total_bytes", "throttle_mask", "sample_s")
# Rates of counters, where the unit of the rate has a name of its own.
RATE_UNITS = {"J": "W", "bytes": "bytes/s", "s": "s/s"}


@dataclass
class _Samples:
    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at_s: float, value: float) -> None:
        self.times.append(at_s)
        self.values.append(value)


def memory_series(run: Run, start_s: float) -> list[TimelineSeries]:
    """Allocator counters and resident sets of all ranks, one band per counter.

    Where the log has a device's free and total memory, `device_used_bytes` holds the difference.
    """
    found: dict[str, _Samples] = {}
    ranks: set[int] = set()
    for attempt in run.attempts:
        for rank in attempt.ranks:
            for line in rank.memory:
                ranks.add(rank.header.rank)
                at_s = rank.wall(line.monotonic_ns) - start_s
                for name, value in _counters(line):
                    found.setdefault(name, _Samples()).add(at_s, value)
    source = f"{len(ranks)} ranks" if len(ranks) > 1 else "".join(f"rank {rank}" for rank in ranks)
    series = [
        bin_by_time(samples, MEMORY_BINS, name=name, unit="bytes", source=source) for name, samples in found.items()
    ]
    return [one for one in series if any(one.high)]


def telemetry_series(run: Run, start_s: float) -> list[TimelineSeries]:
    """Every reading that changes: gauges as they are, counters as their rate; bands over the devices where many."""
    found: dict[tuple[int, str, str], _Samples] = {}
    units: dict[str, str] = {}
    for attempt in run.attempts:
        for node in attempt.nodes:
            meaning: dict[str, dict[str, Any]] = {}
            for probe in node.probes:
                meaning.update(probe.readings)
            header = node.header
            last: dict[str, tuple[float, float]] = {}
            for sample in node.samples:
                at_s = header.wall_s + (sample.monotonic_ns - header.monotonic_ns) / 1e9 - start_s
                for name, value in sample.values.items():
                    device, reading = split_reading(name, meaning)
                    if value is None or reading in NOT_DRAWN or reading.startswith("throttle_"):
                        continue
                    facts = meaning.get(reading, {})
                    unit, number = str(facts.get("unit", "")), float(value)
                    if facts.get("kind") == "counter":
                        before = last.get(name)
                        last[name] = (at_s, number)
                        # a counter that falls was reset: nothing is known of that stretch
                        if before is None or at_s <= before[0] or number < before[1]:
                            continue
                        number = (number - before[1]) / (at_s - before[0])
                        unit = RATE_UNITS.get(unit, f"{unit}/s")
                    units[reading] = unit
                    found.setdefault((header.node, device, reading), _Samples()).add(at_s, number)
    return list(_by_reading(found, units))


def bin_by_time(samples: _Samples, bins: int, **facts: Any) -> TimelineSeries:
    """Lowest, median and highest in equal spans of time; each sample is a point of its own where they are few."""
    times, values = np.array(samples.times), np.array(samples.values)
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    known = np.isfinite(values) & np.isfinite(times)
    times, values = times[known], values[known]
    series = TimelineSeries(**facts, at_s=[], low=[], median=[], high=[])
    if len(times) == 0:
        return series
    begin, span = float(times[0]), float(times[-1] - times[0])
    if len(np.unique(times)) <= bins:
        starts = np.flatnonzero(np.diff(times, prepend=-np.inf) > 0)
    else:
        place = np.minimum(bins - 1, ((times - begin) / span * bins).astype(np.int64))
        starts = np.flatnonzero(np.diff(place, prepend=-1) > 0)
    for first, last in zip(starts, [*starts[1:], len(times)], strict=True):
        part = values[first:last]
        series.at_s.append(round(float(times[first:last].mean()), 3))
        for target, value in ((series.low, part.min()), (series.median, np.median(part)), (series.high, part.max())):
            target.append(float(f"{value:.6g}"))
    return series


def _counters(line: Memory) -> Iterable[tuple[str, float]]:
    for name in MEMORY_COUNTERS:
        value = getattr(line, name)
        if value is not None:
            yield name, float(value)
    if line.device_total_bytes is not None and line.device_free_bytes is not None:
        yield "device_used_bytes", float(line.device_total_bytes - line.device_free_bytes)


def _by_reading(found: dict[tuple[int, str, str], _Samples], units: dict[str, str]) -> Iterable[TimelineSeries]:
    readings: dict[str, list[tuple[int, str]]] = {}
    for node, device, reading in found:
        readings.setdefault(reading, []).append((node, device))
    several = len({node for node, _, _ in found}) > 1
    for reading, owners in sorted(readings.items()):
        unit = units[reading]
        if len(owners) > MAX_DEVICES:
            together = _joined([found[(node, device, reading)] for node, device in owners])
            yield bin_by_time(together, READING_BINS, name=reading, unit=unit, source=f"{len(owners)} devices")
            continue
        for node, device in sorted(owners):
            source = f"node {node}: {device}" if several else device
            samples = found[(node, device, reading)]
            yield bin_by_time(samples, READING_BINS, name=reading, unit=unit, source=source, node=node)


def _joined(parts: Sequence[_Samples]) -> _Samples:
    joined = _Samples()
    for part in parts:
        joined.times += part.times
        joined.values += part.values
    return joined
