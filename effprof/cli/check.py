"""`effprof check`: a gate for continuous integration, failing where a run is slower than its baseline beyond noise."""

from __future__ import annotations

from typing import Annotated

import typer

from effprof.errors import EffprofError


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run to check.")],
    baseline: Annotated[
        list[str], typer.Option("--baseline", metavar="BASE", help="Run to hold it against; several may be given.")
    ],
    max_regression: Annotated[
        str, typer.Option("--max-regression", metavar="SHARE", help="Allowed loss: 3% or 0.03.")
    ] = "3%",
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Figure of `effprof compare`; throughput per device and MFU without."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document (effprof.check/1).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="GitHub-flavoured Markdown, for a summary.")] = False,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE.")] = None,
) -> int:
    """Fails where a run is slower than its baseline.

    Exit code 0: passed or within noise; 1: worse than allowed, and more than noise; 2: bad input.
    """
    from effprof.analysis.analyze import examine
    from effprof.analysis.check import FAILED, check
    from effprof.analysis.locate import locate_run
    from effprof.reports import checks, choose
    from effprof.reports.emit import emit
    from effprof.runlog.reader import open_run

    allowed = _share(max_regression)
    choose(as_json=as_json, as_markdown=as_markdown)
    examined = []
    for given in (run, *baseline):
        path, note = locate_run(given)
        if note:
            typer.echo(f"effprof: {note}", err=True)
        examined.append(examine(open_run(path)))
    checked = check(examined[0], examined[1:], allowed, metric or ())
    emit(checks.render(checked, as_json=as_json, as_markdown=as_markdown), output)
    return 1 if checked.verdict == FAILED else 0


def _share(text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if number != text.strip() else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise EffprofError(f"--max-regression {text}: not a share", "give 3% or 0.03")
    return share
