"""`effprof report`: a run as one HTML file with charts."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from effprof.errors import EffprofError

HTML = (".html", ".htm")
NAME = "report.html"


def command(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_DIR",
            help="A run directory, a directory of runs (its newest is taken), a profiler trace or a folder of them.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE.html", help="Write to FILE.html instead of RUN_DIR/report.html."),
    ] = None,
    peak_tflops: Annotated[
        float | None,
        typer.Option(metavar="TFLOPS", help="Dense peak of one device, where the record has none or another."),
    ] = None,
) -> int:
    """One self-contained HTML file: efficiency, time account, steps over time, memory, experts, ranks, telemetry."""
    from effprof.analysis.analyze import examine
    from effprof.analysis.kernel import analyze_traces, is_trace_path
    from effprof.analysis.locate import locate_run
    from effprof.analysis.timeline import build_timeline
    from effprof.reports import html
    from effprof.reports.emit import emit
    from effprof.runlog.reader import open_run

    if peak_tflops is not None and not 0 < peak_tflops < float("inf"):
        raise EffprofError(f"--peak-tflops {peak_tflops}: not a peak", "give TFLOP/s of one device, such as 989.4")
    if output is not None and os.path.isfile(output) and not output.lower().endswith(HTML):
        raise EffprofError(f"{output}: exists and is no .html file", "give another name, such as report.html")
    complaint = None
    if is_trace_path(run):
        path, (analysis, complaint) = run, analyze_traces(run)
    else:
        path, note = locate_run(run)
        if note:
            typer.echo(f"effprof: {note}", err=True)
        record = open_run(path)
        examined = examine(record, peak_tflops=peak_tflops)
        analysis = examined.analysis
        peak = analysis.efficiency.mfu.peak_flops_per_s
        analysis.timeline = build_timeline(record, peak_flops_per_s=peak, steps=examined.steps)
    target = output or _beside(path)
    emit(html.render(analysis), target)
    typer.echo(f"effprof: wrote {target}")
    if complaint:
        raise complaint
    return 0


def _beside(path: str) -> str:
    """Where a report goes when nobody says: into the run's directory, or here where the run is in an object store."""
    if "://" in path:
        return NAME
    return os.path.join(path if os.path.isdir(path) else os.path.dirname(path) or ".", NAME)
