"""Reduces the trace of a kernel window to its account; run in a process of its own, away from the training.

    python -m effprof.measure.window_reduction TRACE < facts.json > summary.json

The facts are the host phases that the window's steps went through. Time goes to the first of: compute (by the phase
that launched it), exposed communication, copies, input wait, host gap.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import numpy as np

from effprof.errors import EffprofError
from effprof.measure.window_operators import Operator, OperatorTrace, read_operators
from effprof.trace import intervals
from effprof.trace.account import account_rank
from effprof.trace.collectives import name_collectives
from effprof.trace.intervals import EMPTY, Intervals
from effprof.trace.names import COMMUNICATION
from effprof.trace.read import KERNEL, Problem, RankTrace, read_trace
from effprof.trace.windows import make_timeline

US = 1e-6
COMPUTE_PHASES = ("forward", "backward", "optimizer")
_HOST_LINES = {"input_wait": "step.input_wait", "host_to_device": "step.host_to_device", "other": "step.other"}


class WindowFacts(msgspec.Struct, kw_only=True):
    """What the training process knows of its window.

    `marks` are (phase, monotonic ns) at each change, the last one the window's end. `steps` maps the number in each
    `ProfilerStep#` annotation to the monotonic ns at which it was opened: so the two clocks are joined.
    """

    marks: list[tuple[str, int]]
    steps: dict[int, int]
    has_device: bool


class WindowSummary(msgspec.Struct, kw_only=True):
    """The account of a window; see `effprof.runlog.schema.Kernels`."""

    window_s: float
    lines: dict[str, float]
    by_phase: dict[str, dict[str, float]] = {}
    families: dict[str, float] = {}
    operators: dict[str, float] = {}
    account: dict[str, Any] = {}
    problems: list[str] = []


def reduce_window(path: str, facts: WindowFacts) -> WindowSummary:
    """The account of the window whose trace lies at `path`.

    Raises:
        EffprofError: the trace can't be read, or holds none of the window's steps.
    """
    if not facts.has_device:
        return _reduce_operators(read_operators(path), facts)
    trace = read_trace(path)
    problems: list[Problem] = list(trace.problems)
    collectives = name_collectives(trace)
    account = account_rank(trace, collectives, problems)
    if not len(trace.activity):
        raise EffprofError("the window's trace holds no device activity", "is another profiler using the device?")
    lines = _device_lines(trace, facts)
    return WindowSummary(
        window_s=account.window_s,
        lines=lines,
        families={
            name: family.union_s for name, family in account.kernels.items() if not name.startswith(COMMUNICATION)
        },
        account=msgspec.to_builtins(account),
        problems=[problem.message for problem in problems],
    )


def phase_intervals(facts: WindowFacts, step_starts_us: dict[int, float]) -> dict[str, Intervals]:
    """Phase → when the host was in it, on the trace's clock (µs).

    Args:
        step_starts_us: number → start of its `ProfilerStep#` annotation.

    Raises:
        EffprofError: no step is in both.
    """
    common = [(facts.steps[number] / 1e3, start) for number, start in step_starts_us.items() if number in facts.steps]
    if not common:
        raise EffprofError("the window's trace holds none of its steps", "is another profiler running?")
    offset = float(np.median([start - host for host, start in common]))
    spans: dict[str, list[tuple[float, float]]] = {}
    for (phase, start), (_, end) in zip(facts.marks[:-1], facts.marks[1:], strict=True):
        spans.setdefault(phase, []).append((start / 1e3 + offset, end / 1e3 + offset))
    return {
        phase: intervals.union(np.array([start for start, _ in found]), np.array([end for _, end in found]))
        for phase, found in spans.items()
    }


def _reduce_operators(trace: OperatorTrace, facts: WindowFacts) -> WindowSummary:
    phases = phase_intervals(facts, {number: start for number, (start, _) in trace.steps.items()})
    exposed = intervals.subtract(trace.communication, trace.busy)
    bubble = intervals.intersect(exposed, trace.point_to_point)
    exposed = intervals.subtract(exposed, bubble)
    by_phase: dict[str, dict[str, float]] = {}
    for phase, span in phases.items():
        booked: dict[str, float] = {}

        def book(line: str, moments: Intervals, booked: dict[str, float] = booked) -> None:
            seconds = intervals.length(moments) * US
            if seconds > 0:
                booked[line] = booked.get(line, 0.0) + seconds

        if phase in COMPUTE_PHASES:
            book(f"step.{phase}", intervals.intersect(span, trace.busy))
        book("step.exposed_communication", intervals.intersect(span, exposed))
        book("step.pipeline_bubble", intervals.intersect(span, bubble))
        rest = intervals.subtract(span, intervals.merge(exposed, bubble))
        if phase in COMPUTE_PHASES:
            rest = intervals.subtract(rest, trace.busy)
        book("step.host_gap" if phase in COMPUTE_PHASES else _HOST_LINES.get(phase, phase), rest)
        by_phase[phase] = booked
    lines: dict[str, float] = {}
    for found in by_phase.values():
        for line, seconds in found.items():
            lines[line] = lines.get(line, 0.0) + seconds
    called = _called(trace, phases)
    return WindowSummary(
        window_s=sum(lines.values()),
        lines=lines,
        by_phase=by_phase,
        families=_families(called),
        operators=_operators([*called["forward"], *called["backward"]]),
    )


def _called(trace: OperatorTrace, phases: dict[str, Intervals]) -> dict[str, list[Operator]]:
    """Compute phase → the operators that began in it."""
    starts = np.array([operator.start for operator in trace.operators])
    inside = {phase: intervals.contains(phases.get(phase, EMPTY), starts) for phase in COMPUTE_PHASES}
    return {
        phase: [trace.operators[index] for index in np.flatnonzero(found).tolist()] for phase, found in inside.items()
    }


def _families(called: dict[str, list[Operator]]) -> dict[str, float]:
    """Operators' own seconds by family; what the optimizer's phase holds is the optimizer's."""
    families: dict[str, float] = {}
    for phase, operators in called.items():
        for operator in operators:
            name = "optimizer" if phase == "optimizer" else operator.family
            families[name] = families.get(name, 0.0) + operator.own * US
    return families


def _operators(operators: list[Operator]) -> dict[str, float]:
    """What the operators of the model took, and how much of it they would take with next to no data."""
    dataless = [operator.own for operator in operators if operator.is_dataless]
    if not dataless:
        return {}
    dispatch = float(np.median(dataless))
    fixed = sum(min(operator.own, operator.floor * dispatch) for operator in operators)
    return {
        "count": len(operators),
        "own_s": sum(operator.own for operator in operators) * US,
        "dispatch_s": dispatch * US,
        "fixed_s": fixed * US,
    }


def _device_lines(trace: RankTrace, facts: WindowFacts) -> dict[str, float]:
    """Seconds of the window, from its first to its last device activity, by line of the account."""
    activity = trace.activity
    annotated = {
        int(trace.names[name].rpartition("#")[2]): float(start)
        for start, name in zip(trace.annotations.start.tolist(), trace.annotations.name.tolist(), strict=True)
        if trace.names[name].startswith("ProfilerStep#")
    }
    phases = phase_intervals(facts, annotated)
    labels = name_collectives(trace)
    is_send_recv = np.array([labels.get(i) == "send_recv" for i in range(len(activity))], dtype=bool)
    timeline = make_timeline(trace, is_send_recv)
    lines: dict[str, float] = {}
    taken = EMPTY

    def book(line: str, moments: Intervals) -> None:
        nonlocal taken
        lines[line] = lines.get(line, 0.0) + intervals.length(intervals.subtract(moments, taken)) * US
        taken = intervals.merge(taken, moments)

    is_compute = (activity.kind == KERNEL) & ~activity.is_communication
    launched = np.where(np.isfinite(activity.launch_start), activity.launch_start, activity.start)
    # the optimizer first: its few long kernels must not lose what overlaps to a phase that runs ahead
    for phase in ("optimizer", "backward", "forward"):
        mask = is_compute & intervals.contains(phases.get(phase, EMPTY), launched)
        book(f"step.{phase}", intervals.union(activity.start[mask], activity.end[mask]))
    book("step.other", timeline.compute)  # launched between the phases
    book("step.pipeline_bubble", timeline.send_recv)
    book("step.exposed_communication", timeline.communication)
    book("step.host_to_device", timeline.copies)
    book("step.exposed_communication", timeline.idle["rank_wait_s"])
    idle = intervals.gaps(timeline.busy, float(activity.start[0]), float(activity.end.max()))
    for phase, line in (("input_wait", "step.input_wait"), ("host_to_device", "step.host_to_device")):
        book(line, intervals.intersect(idle, phases.get(phase, EMPTY)))
    book("step.host_gap", idle)
    return lines


def main() -> int:
    """Read the facts from stdin, write the summary to stdout."""
    facts = msgspec.json.decode(sys.stdin.buffer.read(), type=WindowFacts)
    try:
        summary = reduce_window(sys.argv[1], facts)
    except EffprofError as error:
        print(error, file=sys.stderr)
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
