"""Ranks against each other: who came last to each collective, and how long the others waited for it.

A collective ends on all its ranks at about the same moment. That aligns the ranks' clocks; a rank's time before the
last one came is waiting, the rest transfer. The last to come is the cause, the others are its victims.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from effprof.trace import intervals
from effprof.trace.read import RankTrace
from effprof.trace.summary import Stragglers

US = 1e-6
# Collectives in which nobody can leave before everybody came; a broadcast's root or a sender can.
_SYMMETRIC = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier"})
Group = tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One rank's part of a collective; µs of its own absolute clock."""

    start_us: float
    end_us: float
    size: int


@dataclass(frozen=True)
class RankCollectives:
    """A rank's collectives, in order, by what identifies them on every rank."""

    by_sequence: dict[tuple[Group, int], Call]
    by_order: dict[Group, list[Call]]


def collect_collectives(trace: RankTrace, kinds: dict[int, str]) -> RankCollectives:
    """The symmetric collectives of one rank's trace; `kinds` as `name_collectives` gives them."""
    activity = trace.activity
    by_sequence: dict[tuple[Group, int], Call] = {}
    by_order: dict[Group, list[Call]] = defaultdict(list)
    for index, kind in kinds.items():
        if kind not in _SYMMETRIC:
            continue
        at = int(activity.collective[index])
        size = 0
        group: Group = (kind,)
        if at >= 0:
            meta = trace.collectives[at]
            group = (kind, meta.group, meta.ranks or str(meta.size))
            size = meta.size
        call = Call(trace.origin_us + float(activity.start[index]), trace.origin_us + float(activity.end[index]), size)
        sequence = int(activity.sequence[index])
        if at >= 0 and sequence >= 0:
            # several kernels of one collective are one call
            known = by_sequence.get((group, sequence))
            if known:
                call = Call(min(known.start_us, call.start_us), max(known.end_us, call.end_us), size)
            by_sequence[group, sequence] = call
        else:
            by_order[group].append(call)
    return RankCollectives(by_sequence, dict(by_order))


def compare_ranks(ranks: dict[int, RankCollectives]) -> dict[int, Stragglers]:
    """Per rank, what it waited, transferred and caused; empty where nothing can be matched."""
    if len(ranks) < 2:
        return {}
    matches, way = _match(ranks)
    if not matches:
        return {}
    offsets = _align(matches, ranks)
    waits: dict[int, list[tuple[float, float]]] = defaultdict(list)
    transfers: dict[int, list[tuple[float, float]]] = defaultdict(list)
    last: dict[int, int] = defaultdict(int)
    caused: dict[int, float] = defaultdict(float)
    matched: dict[int, int] = defaultdict(int)
    is_complete: dict[int, bool] = defaultdict(lambda: True)
    for calls in matches:
        arrivals = {rank: call.start_us + offsets[rank] for rank, call in calls.items()}
        cause = max(arrivals, key=lambda rank: (arrivals[rank], rank))
        longest = 0.0
        for rank, call in calls.items():
            end = call.end_us + offsets[rank]
            turn = min(max(arrivals[cause], arrivals[rank]), end)
            waits[rank].append((arrivals[rank], turn))
            transfers[rank].append((turn, end))
            longest = max(longest, turn - arrivals[rank])
            matched[rank] += 1
            is_complete[rank] &= len(calls) >= call.size > 0
        last[cause] += 1
        caused[cause] += longest
    return {
        rank: Stragglers(
            matched=matched[rank],
            matched_by=way,
            waiting_s=_covered(waits[rank]) * US,
            transferring_s=_covered(transfers[rank]) * US,
            last_to_arrive=last[rank],
            caused_wait_s=caused[rank] * US,
            clock_offset_s=offsets[rank] * US,
            group_is_complete=is_complete[rank],
        )
        for rank in sorted(matched)
    }


def _match(ranks: dict[int, RankCollectives]) -> tuple[list[dict[int, Call]], str]:
    """(collectives with the calls of the ranks that took part, by what they were matched)."""
    by_sequence: dict[tuple[Group, int], dict[int, Call]] = defaultdict(dict)
    for rank, collectives in ranks.items():
        for key, call in collectives.by_sequence.items():
            by_sequence[key][rank] = call
    matches = [calls for calls in by_sequence.values() if len(calls) > 1]
    if matches:
        return matches, "sequence"
    groups = {group for collectives in ranks.values() for group in collectives.by_order}
    for group in sorted(groups):
        lists = {rank: one.by_order[group] for rank, one in ranks.items() if group in one.by_order}
        # windows that do not begin together hold other collectives: an order matches only where the counts do
        if len(lists) > 1 and len({len(calls) for calls in lists.values()}) == 1:
            matches += [dict(zip(lists, calls, strict=True)) for calls in zip(*lists.values(), strict=True)]
    return matches, "order"


def _align(matches: list[dict[int, Call]], ranks: dict[int, RankCollectives]) -> dict[int, float]:
    """Per rank, what is added to its clock: the median distance of its ends from those of ranks aligned before."""
    offsets: dict[int, float] = {}
    pending = sorted(ranks)
    while pending:
        reached = None
        for rank in pending:
            distances = [
                calls[other].end_us + offsets[other] - calls[rank].end_us
                for calls in matches
                if rank in calls
                for other in calls
                if other in offsets
            ]
            if distances:
                reached = rank, intervals.median(np.array(distances))
                break
        rank, offset = reached if reached else (pending[0], 0.0)
        offsets[rank] = offset
        pending.remove(rank)
    return offsets


def _covered(spans: list[tuple[float, float]]) -> float:
    pairs = np.array(spans, dtype=np.float64).reshape(-1, 2)
    first = pairs[:, 0].min() if len(pairs) else 0.0
    return intervals.length(intervals.union(pairs[:, 0] - first, pairs[:, 1] - first))
