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
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes that read the ranks' logs; by default one per 128 MiB and core."),
    ] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE.")] = None,
) -> int:
    """Efficiency, time account, memory, expert load, ranks and warnings of one or several runs."""
    from effprof.cli.advice import check_peak, read
    from effprof.reports import choose
    from effprof.reports.emit import emit

    check_peak(peak_tflops)
    report = choose(as_json=as_json, as_markdown=as_markdown)
    rendered, problems = [], []
    for given in runs:
        try:
            found = read(given, peak_tflops, workers)
        except EffprofError as error:
            problems.append(error)
            continue
        found.analysis.timeline = None  # long, and only drawn: `effprof report` keeps it
        rendered.append(report.render(found.analysis))
        problems += [found.complaint] if found.complaint else []
    if rendered:
        emit(("" if as_json else "\n").join(rendered), output)
    for problem in problems[:-1]:
        typer.echo(f"effprof: {problem}", err=True)
    if problems:
        raise problems[-1]
    return 0
