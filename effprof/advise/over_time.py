"""What rules ask of a run over time: the analysis' timeline, read as plain numbers."""

from __future__ import annotations

import statistics

from effprof.advise.rule import Missing
from effprof.analysis.model import Analysis
from effprof.analysis.timeline_model import Timeline, TimelineEvent


def timeline(run: Analysis) -> Timeline:
    """The run over time; raises `Missing` where the analysis was made without it."""
    if run.timeline is None or not run.timeline.at_s:
        raise Missing("the run over time", "run `effprof recommend` on the run's directory")
    return run.timeline


def phase_bins(run: Analysis, phase: str) -> list[tuple[int, int, float]]:
    """First step, last step and seconds per step of a phase in every bin of the timeline that has them."""
    line = timeline(run)
    values = line.phases_s.get(phase, [])
    return [
        (first, last, value)
        for first, last, value in zip(line.first_step, line.last_step, values, strict=False)
        if value is not None
    ]


def median_step_seconds(run: Analysis) -> float:
    """Median of the steady steps' time."""
    median = run.efficiency.step_time_s.median
    if not median:
        raise Missing("a steady step's time", "let the run make more steps")
    return median


def median_of_phase(run: Analysis, phase: str) -> float:
    """Median over bins of a phase's seconds per step; 0 where the phase does not occur."""
    values = [value for _, _, value in phase_bins(run, phase)]
    return statistics.median(values) if values else 0.0


def events(run: Analysis, kind: str) -> list[TimelineEvent]:
    """Events of a kind, in order of time."""
    return [event for event in timeline(run).events if event.kind == kind]


def count_events(run: Analysis, kind: str) -> int:
    """How many events of a kind there were, those included that the timeline does not list."""
    return timeline(run).events_total.get(kind, len(events(run, kind)))
