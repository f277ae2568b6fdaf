"""`effprof analyze`: what a run used of its accelerators, and where its time went."""

from __future__ import annotations

from typing import Annotated

import typer

from effprof.errors import EffprofError


def command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_DIR",
            help="Run directories, a directory of runs (its newest is taken), profiler traces or folders of them.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document per run and line (effprof.analysis/1).")
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown, for issues and wikis.")] = False,
    peak_tflops: Annotated[
        float | None,
        typer.Option(metavar="TFLOPS", help="Dense peak of one device, where the record has none or another."),
    ] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE.")] = None,
) -> int:
    """Efficiency, time account, memory, expert load, ranks and warnings of one or several runs."""
    from effprof.analysis.analyze import analyze
    from effprof.analysis.kernel import analyze_traces, is_trace_path
    from effprof.analysis.locate import locate_run
    from effprof.reports import choose
    from effprof.reports.emit import emit
    from effprof.runlog.reader import open_run

    if peak_tflops is not None and not 0 < peak_tflops < float("inf"):
        raise EffprofError(f"--peak-tflops {peak_tflops}: not a peak", "give TFLOP/s of one device, such as 989.4")
    report = choose(as_json=as_json, as_markdown=as_markdown)
    rendered, problems = [], []
    for given in runs:
        try:
            if is_trace_path(given):
                traced, complaint = analyze_traces(given)
                rendered.append(report.render(traced))
                problems += [complaint] if complaint else []
                continue
            path, note = locate_run(given)
            if note:
                typer.echo(f"effprof: {note}", err=True)
            rendered.append(report.render(analyze(open_run(path), peak_tflops=peak_tflops)))
        except EffprofError as error:
            problems.append(error)
    if rendered:
        emit(("" if as_json else "\n").join(rendered), output)
    for problem in problems[:-1]:
        typer.echo(f"effprof: {problem}", err=True)
    if problems:
        raise problems[-1]
    return 0
