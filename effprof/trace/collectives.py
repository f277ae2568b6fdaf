"""Which collective each communication kernel carries out."""

from __future__ import annotations

import numpy as np

from effprof.trace.collect import DEVICE_COLLECTIVE
from effprof.trace.names import collective_kind
from effprof.trace.nesting import enclosing
from effprof.trace.read import RankTrace


def name_collectives(trace: RankTrace) -> dict[int, str]:
    """Activity → `all_reduce`, `all_to_all`, … or `other`, for every communication kernel.

    By Kineto's metadata, else by the annotation around the launch, else by what kernels of the same name were by
    those, else by the name: NCCL carries an all-to-all out as a kernel called SendRecv.
    """
    activity = trace.activity
    spans = trace.annotations.of(DEVICE_COLLECTIVE)
    around = enclosing(activity.launch_start, activity.launch_thread, spans.start, spans.end, spans.thread)
    indices = [int(index) for index in np.flatnonzero(activity.is_communication)]
    told: dict[int, str] = {}
    by_name: dict[int, set[str]] = {}
    for index in indices:
        at = int(activity.collective[index])
        kind = collective_kind(trace.collectives[at].name) if at >= 0 else None
        if kind is None and around[index] >= 0:
            kind = collective_kind(trace.names[int(spans.name[around[index]])].partition(":")[2])
        if kind is not None:
            told[index] = kind
            by_name.setdefault(int(activity.name[index]), set()).add(kind)
    kinds = {}
    for index in indices:
        name = int(activity.name[index])
        same = by_name.get(name, set())
        learned = next(iter(same)) if len(same) == 1 else None
        kinds[index] = told.get(index) or learned or collective_kind(trace.names[name]) or "other"
    return kinds
