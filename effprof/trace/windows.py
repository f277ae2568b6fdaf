"""Device time split into compute, communication, copies and idle, for the whole trace and for each step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effprof.trace import intervals
from effprof.trace.collect import HOST_COLLECTIVE, INPUT_WAIT, OPTIMIZER, STEP, step_number
from effprof.trace.intervals import EMPTY, Flags, Floats, Intervals
from effprof.trace.nesting import enclosing
from effprof.trace.read import KERNEL, Activity, RankTrace
from effprof.trace.summary import Idle, Phases, Split, Step

US = 1e-6


@dataclass(frozen=True)
class Timeline:
    """The interval sets of one rank; µs after the trace's origin."""

    compute: Intervals
    communication: Intervals
    kernels: Intervals  # both
    copies: Intervals
    busy: Intervals  # all three
    idle: dict[str, Intervals]  # keys of Idle
    phases: dict[str, Intervals]  # keys of Phases; empty where it is not known which thread drives the step
    send_recv: Intervals  # exposed time in point-to-point kernels


def make_timeline(trace: RankTrace, is_send_recv: Flags) -> Timeline:
    """Unions of a rank's device activity.

    Args:
        is_send_recv: per activity, whether it sends to or receives from another pipeline stage.
    """
    activity = trace.activity

    def covered(mask: Flags) -> Intervals:
        return intervals.union(activity.start[mask], activity.end[mask])

    is_kernel = activity.kind == KERNEL
    compute = covered(is_kernel & ~activity.is_communication)
    communication = covered(activity.is_communication)
    kernels = intervals.merge(compute, communication)
    copies = covered(~is_kernel)
    busy = intervals.merge(kernels, copies)
    others = intervals.merge(compute, covered(activity.is_communication & ~is_send_recv))
    return Timeline(
        compute=compute,
        communication=communication,
        kernels=kernels,
        copies=copies,
        busy=busy,
        idle=_explain_idle(trace, busy, communication),
        phases=_divide_compute(trace, is_kernel & ~activity.is_communication),
        send_recv=intervals.subtract(covered(is_send_recv), others) if is_send_recv.any() else EMPTY,
    )


def _divide_compute(trace: RankTrace, is_compute: Flags) -> dict[str, Intervals]:
    """Compute by the phase that launched it: autograd launches from threads of its own."""
    activity = trace.activity
    drivers = trace.annotations.of(STEP)
    updates = trace.annotations.of(OPTIMIZER)
    threads = drivers.thread if len(drivers.thread) else updates.thread
    if not len(threads):
        return {}
    is_known = np.isfinite(activity.launch_start)
    is_update = (
        enclosing(activity.launch_start, activity.launch_thread, updates.start, updates.end, updates.thread) >= 0
    )
    is_driver = np.isin(activity.launch_thread, threads)
    taken = EMPTY
    phases = {}
    for name, mask in (
        ("forward_s", is_known & is_driver & ~is_update),
        ("backward_s", is_known & ~is_driver & ~is_update),
        ("optimizer_s", is_update),
        ("unknown_s", ~is_known),
    ):
        covered = intervals.union(activity.start[is_compute & mask], activity.end[is_compute & mask])
        phases[name] = intervals.subtract(covered, taken)
        taken = intervals.merge(taken, covered)
    return phases


def _explain_idle(trace: RankTrace, busy: Intervals, communication: Intervals) -> dict[str, Intervals]:
    """The gaps between device activity, by reason; together they are exactly the gaps.

    Until the call that launched the activity after the gap returns, the gap is the host's; after that the activity
    was queued and waited for something on the device.
    """
    activity = trace.activity
    start, end = busy.ends[:-1], busy.starts[1:]
    following = _first_at(activity, end)
    launched = activity.launch_end[following] if len(activity) else np.empty(0)
    is_known = np.isfinite(launched)
    turn = np.where(is_known, np.clip(launched, start, end), end)
    host = intervals.union(start[is_known], turn[is_known])
    waited_input = _spans(trace, INPUT_WAIT)
    waited_ranks = _spans(trace, HOST_COLLECTIVE)
    input_wait = intervals.intersect(host, waited_input)
    host = intervals.subtract(host, waited_input)
    rank_wait = intervals.intersect(host, waited_ranks)
    host = intervals.subtract(host, waited_ranks)
    is_behind = np.isin(start, communication.ends)
    behind = intervals.union(turn[is_known & is_behind], end[is_known & is_behind])
    queued = intervals.union(turn[is_known & ~is_behind], end[is_known & ~is_behind])
    return {
        "host_bound_s": host,
        "input_wait_s": input_wait,
        "rank_wait_s": intervals.merge(rank_wait, behind),
        "queued_s": queued,
        "unknown_s": intervals.union(start[~is_known], end[~is_known]),
    }


def _first_at(activity: Activity, moments: Floats) -> intervals.Indices:
    """The activity that begins at each moment; of several, the one that was launched first."""
    first = np.searchsorted(activity.start, moments, side="left")
    for offset in range(1, 4):
        other = np.minimum(first + offset, len(activity) - 1)
        is_earlier = (activity.start[other] == moments) & ~(activity.launch_end[first] <= activity.launch_end[other])
        first = np.where(is_earlier & np.isfinite(activity.launch_end[other]), other, first)
    return first


def _spans(trace: RankTrace, role: int) -> Intervals:
    spans = trace.annotations.of(role)
    return intervals.union(spans.start, spans.end)


def split(timeline: Timeline, starts: Floats, ends: Floats) -> list[Split]:
    """One `Split` per window [start, end)."""

    def inside(one: Intervals) -> Floats:
        return intervals.before(one, ends) - intervals.before(one, starts)

    window = ends - starts
    compute, communication, kernels = (
        inside(one) for one in (timeline.compute, timeline.communication, timeline.kernels)
    )
    copies, busy = inside(timeline.copies), inside(timeline.busy)
    reasons = {name: inside(one) for name, one in timeline.idle.items()}
    phases = {name: inside(one) for name, one in timeline.phases.items()}
    return [
        Split(
            window_s=float(window[i]) * US,
            compute_s=float(compute[i]) * US,
            communication_s=float(communication[i]) * US,
            communication_exposed_s=float(kernels[i] - compute[i]) * US,
            memory_copy_s=float(copies[i]) * US,
            memory_copy_exposed_s=float(busy[i] - kernels[i]) * US,
            idle_s=float(window[i] - busy[i]) * US,
            idle=Idle(**{name: float(reason[i]) * US for name, reason in reasons.items()}),
            phases=Phases(**{name: float(phase[i]) * US for name, phase in phases.items()}) if phases else None,
        )
        for i in range(len(starts))
    ]


def step_windows(trace: RankTrace) -> tuple[list[int], Floats, Floats, Floats]:
    """(numbers, device starts, device ends, host seconds in µs) of the profiled steps, in order.

    A step is what it launched: from its first device activity to the next step's, the last to the end of its own.
    A trace that does not tell launches is cut at the host's annotations.
    """
    steps = trace.annotations.of(STEP)
    none = np.empty(0)
    if not len(steps.start) or not len(trace.activity):
        return [], none, none, none
    numbers = [step_number(trace.names[index]) for index in steps.name]
    activity = trace.activity
    owner = np.searchsorted(steps.start, activity.launch_start, side="right") - 1
    is_owned = np.isfinite(activity.launch_start) & (owner >= 0)
    is_owned &= activity.launch_start < steps.end[np.maximum(owner, 0)]
    kept, starts, last = [], [], []
    for index in range(len(numbers)):
        mine = np.flatnonzero(is_owned & (owner == index))
        if len(mine):
            kept.append(index)
            starts.append(activity.start[mine[0]])
            last.append(activity.end[mine].max())
    if not kept:
        bounds = activity.start[0], activity.end.max()
        return numbers, np.clip(steps.start, *bounds), np.clip(steps.end, *bounds), steps.end - steps.start
    begins = np.maximum.accumulate(np.array(starts))
    ends = np.r_[begins[1:], max(last[-1], begins[-1])]
    return [numbers[index] for index in kept], begins, ends, (steps.end - steps.start)[kept]


def split_steps(trace: RankTrace, timeline: Timeline) -> list[Step]:
    """The split of every profiled step."""
    numbers, starts, ends, host = step_windows(trace)
    bubble = intervals.before(timeline.send_recv, ends) - intervals.before(timeline.send_recv, starts)
    has_bubble = len(timeline.send_recv.starts) > 0
    return [
        Step(
            step=number,
            host_s=float(host[index]) * US,
            pipeline_bubble_s=float(bubble[index]) * US if has_bubble else None,
            **{name: getattr(one, name) for name in Split.__struct_fields__},
        )
        for index, (number, one) in enumerate(zip(numbers, split(timeline, starts, ends), strict=True))
    ]
