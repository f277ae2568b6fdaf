"""What `analyze`, `report` and `recommend` share: a path read as an analysis, and the rules' findings put into it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import typer

from effprof.advise.calibration import load_calibration
from effprof.advise.recommend import Recommendations, recommend
from effprof.analysis.analyze import Examined, examine
from effprof.analysis.foreign import examine_foreign
from effprof.analysis.foreign_given import Given
from effprof.analysis.kernel import analyze_traces, is_trace_path
from effprof.analysis.locate import locate_run
from effprof.analysis.model import Analysis
from effprof.analysis.timeline import build_timeline
from effprof.cli.foreign_logs import given_facts, is_foreign, need_foreign, one_log
from effprof.errors import EffprofError
from effprof.runlog.parallel import worker_pool
from effprof.runlog.reader import Run, open_run


@dataclass(frozen=True)
class Read:
    """What a path held.

    Attributes:
        path: the run or trace that was taken.
        analysis: with findings, with `not_evaluated` and with the timeline.
        recommendations: the same findings as `effprof recommend` answers them.
        complaint: what could not be read of a folder of traces.
    """

    path: str
    analysis: Analysis
    recommendations: Recommendations
    complaint: EffprofError | None = None


def check_peak(peak_tflops: float | None) -> None:
    """Refuses what is no peak of a device.

    Raises:
        EffprofError: says so.
    """
    if peak_tflops is not None and not 0 < peak_tflops < float("inf"):
        raise EffprofError(f"--peak-tflops {peak_tflops}: not a peak", "give TFLOP/s of one device, such as 989.4")


def read(given: str, peak_tflops: float | None = None, workers: int | None = None, facts: Given | None = None) -> Read:
    """Analyse a run directory, a directory of runs (its newest), another tool's log, or profiler traces.

    Args:
        facts: what another tool's log lacks.

    Raises:
        EffprofError: nothing there can be read.
    """
    if is_foreign(given):
        log, complaint = one_log(given)
        return read_log(log, facts or given_facts(peak_tflops=peak_tflops), complaint)
    if is_trace_path(given):
        traced, complaint = analyze_traces(given)
        return Read(given, traced, advise(traced), complaint)
    path, note = locate_run(given)
    if note:
        typer.echo(f"effprof: {note}", err=True)
    with worker_pool(path, workers) as executor:
        record = open_run(path, executor)
        analysis = with_timeline(record, examine(record, peak_tflops=peak_tflops, executor=executor))
    return Read(path, analysis, advise(analysis))


def read_log(log: str, facts: Given, complaint: EffprofError | None = None) -> Read:
    """Analyse one log of another tool, as `logs_in` names it.

    Raises:
        EffprofError: it cannot be read.
    """
    analysis = examine_foreign(log, facts).analysis
    return Read(log, analysis, advise(analysis), complaint)


def read_with(given: str, peak_tflops: float | None, **facts: Any) -> Read:
    """`read`, with the command line's options on what another tool's log lacks.

    Args:
        facts: as `given_facts` takes them.

    Raises:
        EffprofError: nothing there can be read, or an option does not fit it.
    """
    check_peak(peak_tflops)
    need_foreign(not os.path.exists(given) or is_foreign(given), **facts)
    return read(given, peak_tflops, facts=given_facts(peak_tflops=peak_tflops, **facts))


def with_timeline(record: Run, examined: Examined) -> Analysis:
    """The analysis with the run over time, which some rules and the HTML report look at."""
    analysis = examined.analysis
    peak = analysis.efficiency.mfu.peak_flops_per_s
    analysis.timeline = build_timeline(record, peak_flops_per_s=peak, steps=examined.steps)
    return analysis


def advise(analysis: Analysis) -> Recommendations:
    """Put the findings of all rules, calibrated by earlier trials on this machine, into the analysis."""
    found = recommend(analysis, load_calibration())
    analysis.findings = found.findings
    analysis.not_evaluated = found.not_evaluated
    return found
