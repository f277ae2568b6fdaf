"""What happened when: evaluations, checkpoints, compilations, starts and ends of attempts, warnings, throttling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from effprof.analysis.account import Window
from effprof.analysis.steps import column, seconds_in
from effprof.analysis.timeline_model import TimelineEvent
from effprof.hardware.probes.nvidia_values import throttle_reasons
from effprof.runlog.reader import NodeLog, RankLog, Run
from effprof.runlog.schema import BEGAN

MAX_PER_KIND = 200  # of each kind the longest are kept: more marks than that hide what they mark
MARKED_PHASES = ("startup", "compile", "evaluation", "checkpoint")
# A phase inside a step shorter than this share of it, and than this long, is no event.
SHORT_SHARE = 0.05
SHORT_S = 0.05
# Spans of one phase that lie closer than this are one event.
PIECES_GAP_S = 0.2
# Held down for at least this share of the time between two samples.
THROTTLED_SHARE = 0.02
# Reasons in a mask of clocks events that are not throttling.
BENIGN_REASONS = frozenset({"idle", "application_clocks", "display"})


def find_events(run: Run, windows: Sequence[Window]) -> tuple[list[TimelineEvent], dict[str, int]]:
    """Events in order of time, and how many there were of the kinds of which not all are listed.

    Phases are taken from the first rank of each attempt: ranks evaluate and save together.
    """
    start_s = windows[0].start_s
    found: list[TimelineEvent] = []
    for attempt, window in zip(run.attempts, windows, strict=True):
        found.append(
            TimelineEvent(kind="attempt", at_s=_at(window.start_s - start_s), label=f"attempt {attempt.index} starts")
        )
        first = next((rank for rank in attempt.ranks if rank.steps), attempt.ranks[0])
        found += _phase_events(first, start_s)
        found += _recorded_events(attempt.ranks, start_s)
        for node in attempt.nodes:
            found += throttling(node, start_s)
        status = next((rank.end.status for rank in attempt.ranks if rank.end and rank.end.status != "completed"), None)
        if status is None and all(rank.end is None for rank in attempt.ranks):
            status = "no closing line"
        if status is not None:
            found.append(
                TimelineEvent(
                    kind="ended", at_s=_at(window.end_s - start_s), label=f"attempt {attempt.index}: {status}"
                )
            )
    return _limited(found)


def throttling(node: NodeLog, start_s: float) -> list[TimelineEvent]:
    """Stretches of time in which a device's clocks were held down, one list entry per device and reason.

    Counters of throttled seconds decide; where a device has none, the momentary mask of reasons does.
    """
    times = [
        node.header.wall_s + (sample.monotonic_ns - node.header.monotonic_ns) / 1e9 - start_s for sample in node.samples
    ]
    spans: dict[tuple[str, str], list[tuple[float, float]]] = {}
    counted: set[str] = set()
    names = dict.fromkeys(name for sample in node.samples for name in sample.values if ".throttle_" in name)
    for name in names:
        device, _, reading = name.rpartition(".")
        if reading == "throttle_mask":
            continue
        values = [(at, sample.values.get(name)) for at, sample in zip(times, node.samples, strict=True)]
        known = [(at, float(value)) for at, value in values if value is not None]
        if known:
            counted.add(device)
        for (before, low), (after, high) in pairwise(known):
            if after > before and (high - low) / (after - before) >= THROTTLED_SHARE:
                reason = reading.removeprefix("throttle_").removesuffix("_s")
                spans.setdefault((device, reason), []).append((before, after))
    for at, sample in zip(times, node.samples, strict=True):
        for name, mask in sample.values.items():
            device, _, reading = name.rpartition(".")
            if reading == "throttle_mask" and device not in counted and mask is not None and math.isfinite(mask):
                for reason in set(throttle_reasons(int(mask))) - BENIGN_REASONS:
                    spans.setdefault((device, reason), []).append((at, at))
    period_s = min((after - before for before, after in pairwise(times) if after > before), default=1.0)
    return [
        TimelineEvent(
            kind="throttling",
            at_s=_at(begin),
            until_s=_at(end),
            label=reason.replace("_", " "),
            source=f"node {node.header.node}: {device}",
        )
        for (device, reason), parts in spans.items()
        for begin, end in _merged(parts, 1.5 * period_s)
    ]


def _phase_events(rank: RankLog, start_s: float) -> Iterator[TimelineEvent]:
    source = f"rank {rank.header.rank}"
    for phase in MARKED_PHASES:
        spans = [
            (rank.wall(span.start_ns) - start_s, rank.wall(span.end_ns) - start_s)
            for span in rank.spans
            if span.name == phase and not span.inside_step and span.end_ns > span.start_ns
        ]
        # a phase is often written in pieces
        for begin, end in _merged(spans, PIECES_GAP_S):
            yield TimelineEvent(kind=phase, at_s=_at(begin), until_s=_at(end), label=phase, source=source)
    if not rank.steps:
        return
    columns = [name.removesuffix("_ns") for name in rank.columns if name.endswith("_ns") and name != "end_ns"]
    whole = seconds_in(rank, [name for name in columns if not name.startswith("device_")])
    begins = (column(rank, "end_ns") - rank.header.monotonic_ns) / 1e9 + rank.header.wall_s - start_s - whole
    numbers = column(rank, "step")
    for phase in MARKED_PHASES:
        seconds = seconds_in(rank, (phase,))
        for row in np.flatnonzero((seconds > SHORT_S) | ((seconds > 0) & (seconds > SHORT_SHARE * whole))):
            # the row begins where the step before ended: what follows a step is done before the next one's first batch
            after = f" before step {numbers[row]:.0f}" if np.isfinite(numbers[row]) else ""
            yield TimelineEvent(
                kind=phase,
                at_s=_at(begins[row]),
                until_s=_at(begins[row] + seconds[row]),
                label=f"{phase}{after}",
                source=source,
            )


def _recorded_events(ranks: Sequence[RankLog], start_s: float) -> list[TimelineEvent]:
    """Each distinct event of the ranks once, at the time of the rank that wrote it first."""
    first: dict[tuple[str, str], TimelineEvent] = {}
    for rank in ranks:
        for event in (each for each in rank.events if each.name != BEGAN):
            at_s = _at(rank.wall(event.monotonic_ns) - start_s)
            name = str(event.data.get("code") or event.name)
            found = TimelineEvent(
                kind="warning", at_s=at_s, label=f"{name}: {event.message}", source=f"rank {rank.header.rank}"
            )
            key = (name, event.message)
            if key not in first or at_s < first[key].at_s:
                first[key] = found
    return list(first.values())


def _merged(parts: Sequence[tuple[float, float]], gap_s: float) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(parts):
        if merged and begin - merged[-1][1] <= gap_s:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _limited(events: list[TimelineEvent]) -> tuple[list[TimelineEvent], dict[str, int]]:
    kinds: dict[str, list[TimelineEvent]] = {}
    for event in events:
        kinds.setdefault(event.kind, []).append(event)
    totals = {kind: len(found) for kind, found in kinds.items() if len(found) > MAX_PER_KIND}
    kept = [
        event
        for found in kinds.values()
        for event in sorted(found, key=lambda event: (event.at_s - (event.until_s or event.at_s), event.at_s))[
            :MAX_PER_KIND
        ]
    ]
    return sorted(kept, key=lambda event: event.at_s), totals


def _at(seconds: float) -> float:
    return round(max(0.0, float(seconds)), 4)
