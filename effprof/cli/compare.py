"""`effprof compare`: runs side by side, on any chips, with what is and what is not a difference."""

from __future__ import annotations

from typing import Annotated

import typer

from effprof.errors import EffprofError


def command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Two or more runs; ratios are to the first.")],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document (effprof.compare/1).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown, for issues and wikis.")] = False,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE.")] = None,
) -> int:
    """Differing settings first, then every figure absolute, per device, relative to peak and to bandwidth."""
    from effprof.analysis.analyze import examine
    from effprof.analysis.compare import compare
    from effprof.analysis.foreign import examine_foreign
    from effprof.analysis.locate import locate_run
    from effprof.cli.foreign_logs import is_foreign, one_log
    from effprof.reports import choose
    from effprof.reports.emit import emit
    from effprof.runlog.reader import open_run

    if len(runs) < 2:
        raise EffprofError("compare needs at least two runs", "give two or more run directories")
    report = choose(as_json=as_json, as_markdown=as_markdown)
    examined = []
    for given in runs:
        if is_foreign(given):
            examined.append(examine_foreign(one_log(given)[0]))
            continue
        path, note = locate_run(given)
        if note:
            typer.echo(f"effprof: {note}", err=True)
        examined.append(examine(open_run(path)))
    emit(report.render_comparison(compare(examined)), output)
    return 0
