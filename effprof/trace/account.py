"""The kernel account: from traces to what each rank's device time went to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from effprof.trace import intervals
from effprof.trace.collectives import name_collectives
from effprof.trace.families import (
    label_kernels,
    measure_copies,
    measure_families,
    measure_launches,
    measure_matrix_units,
    top_kernels,
)
from effprof.trace.folder import find_traces
from effprof.trace.names import COMMUNICATION
from effprof.trace.read import Problem, RankTrace, read_trace
from effprof.trace.stragglers import RankCollectives, collect_collectives, compare_ranks
from effprof.trace.summary import Idle, RankKernels, Split
from effprof.trace.windows import US, make_timeline, split, split_steps


@dataclass
class KernelAccount:
    """What one trace or a folder of them tells.

    Attributes:
        ranks: rank → its account, in order of rank.
        problems: what a reader of the numbers should know.
        device_names: names of the devices, by the traces.
        lost_bytes: trace → bytes after the last whole event of a file that is cut off.
    """

    ranks: dict[int, RankKernels] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    devices: dict[int, dict[str, object]] = field(default_factory=dict)
    world_size: int | None = None
    lost_bytes: dict[str, int] = field(default_factory=dict)
    started_us: float = 0.0
    ended_us: float = 0.0


def account_traces(path: str) -> KernelAccount:
    """The kernel account of a trace file or of a folder with one trace per rank.

    Ranks are read one after another and only their summaries kept.

    Raises:
        EffprofError: nothing there, or a trace that cannot be read.
    """
    account = KernelAccount()
    collectives: dict[int, RankCollectives] = {}
    sources: dict[int, str] = {}
    for file in find_traces(path):
        trace = read_trace(file)
        if trace.rank in sources:
            account.problems.append(
                Problem("trace_rank_twice", f"rank {trace.rank}: {file} is used, {sources[trace.rank]} is left out")
            )
        sources[trace.rank] = file
        account.problems += trace.problems
        if trace.lost_bytes is not None:
            account.lost_bytes[file] = trace.lost_bytes
            account.problems.append(
                Problem(
                    "trace_truncated",
                    f"{file} is cut off: {trace.lost_bytes:,} bytes follow its last whole event and are lost; "
                    f"the figures cover the {trace.events:,} events before them",
                )
            )
        account.world_size = max(account.world_size or 0, trace.world_size or 0) or None
        if trace.devices:
            account.devices[trace.rank] = dict(_device_of(trace))
        kinds = name_collectives(trace)
        account.ranks[trace.rank] = account_rank(trace, kinds, account.problems)
        collectives[trace.rank] = collect_collectives(trace, kinds)
        _note_span(account, trace)
    account.ranks = dict(sorted(account.ranks.items()))
    _add_stragglers(account, collectives)
    return account


def account_rank(trace: RankTrace, collectives: dict[int, str], problems: list[Problem]) -> RankKernels:
    """The account of one rank.

    Args:
        collectives: as `name_collectives` gives them.
        problems: takes what a reader should know about this rank.
    """
    activity = trace.activity
    if not len(activity):
        problems.append(
            Problem(
                "trace_without_device",
                f"{trace.path}: no device activity (kernels, copies) was recorded: the kernel account is zero. "
                "Profile with ProfilerActivity.CUDA (XPU, PrivateUse1) on an accelerator",
            )
        )
        return RankKernels(**_fields(_NOTHING), kernels={}, events=trace.events, trace=trace.path)
    labels = label_kernels(trace, collectives)
    is_send_recv = labels.of(f"{COMMUNICATION}.send_recv")
    timeline = make_timeline(trace, is_send_recv)
    (whole,) = split(timeline, np.array([activity.start[0]]), np.array([activity.end.max()]))
    devices = len({int(device) for device in activity.device if device >= 0})
    if devices > 1:
        problems.append(
            Problem(
                "trace_several_devices",
                f"{trace.path}: rank {trace.rank} used {devices} devices; its times are unions over them",
            )
        )
    return RankKernels(
        **_fields(whole),
        kernels=measure_families(trace, labels, timeline.compute),
        steps=split_steps(trace, timeline),
        top_kernels=top_kernels(trace, labels),
        matrix_units=measure_matrix_units(trace, labels),
        launch_bound=measure_launches(trace),
        pipeline_bubble_s=intervals.length(timeline.send_recv) * US if is_send_recv.any() else None,
        copies=measure_copies(trace),
        devices=devices or 1,
        events=trace.events,
        trace=trace.path,
    )


_NOTHING = Split(
    window_s=0.0,
    compute_s=0.0,
    communication_s=0.0,
    communication_exposed_s=0.0,
    memory_copy_s=0.0,
    memory_copy_exposed_s=0.0,
    idle_s=0.0,
    idle=Idle(),
)


def _fields(one: Split) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Split.__struct_fields__}


def _device_of(trace: RankTrace) -> Mapping[str, object]:
    """Properties of the device that the rank used first; the first listed where ids do not match."""
    used = int(trace.activity.device[0]) if len(trace.activity) else -1
    return next((device for device in trace.devices if device.get("id") == used), trace.devices[0])


def _note_span(account: KernelAccount, trace: RankTrace) -> None:
    activity, annotations = trace.activity, trace.annotations
    starts = [float(one.start[0]) for one in (activity, annotations) if len(one.start)]
    ends = [float(one.end.max()) for one in (activity, annotations) if len(one.end)]
    first = trace.origin_us + min(starts, default=0.0)
    account.started_us = min(account.started_us, first) if account.started_us else first
    account.ended_us = max(account.ended_us, trace.origin_us + max(ends, default=0.0))


def _add_stragglers(account: KernelAccount, collectives: dict[int, RankCollectives]) -> None:
    for rank, stragglers in compare_ranks(collectives).items():
        account.ranks[rank].stragglers = stragglers
