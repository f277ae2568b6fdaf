"""`effprof compare`: runs side by side, on any chips, with what is and what is not a difference."""

from __future__ import annotations

from typing import Annotated

import typer

from effprof.cli.foreign_logs import each_log
from effprof.errors import EffprofError


def command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Two or more runs; ratios are to the first.")],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document (effprof.compare/1).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown, for issues and wikis.")] = False,
    model: Annotated[list[str] | None, each_log("--model", "CONFIG", "config.json of the model")] = None,
    device: Annotated[list[str] | None, each_log("--device", "NAME", "the device")] = None,
    seq: Annotated[list[int] | None, each_log("--seq", "N", "tokens of a sequence")] = None,
    devices: Annotated[list[int] | None, each_log("--devices", "N", "devices of the job")] = None,
    global_batch: Annotated[
        list[int] | None, each_log("--global-batch", "N", "sequences of an optimizer step of the whole job")
    ] = None,
    dtype: Annotated[list[str] | None, each_log("--dtype", "DTYPE", "dtype of the matmuls")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE.")] = None,
) -> int:
    """Sets runs side by side, on any chips.

    Differing settings first, then every figure absolute, per device, relative to peak and to bandwidth.
    """
    from effprof.analysis.analyze import examine
    from effprof.analysis.compare import compare
    from effprof.analysis.foreign import examine_foreign
    from effprof.analysis.locate import locate_run
    from effprof.cli.foreign_logs import facts_of_each, is_foreign, one_log
    from effprof.reports import choose
    from effprof.reports.emit import emit
    from effprof.runlog.reader import open_run

    if len(runs) < 2:
        raise EffprofError("compare needs at least two runs", "give two or more run directories")
    report = choose(as_json=as_json, as_markdown=as_markdown)
    foreign = [run for run in runs if is_foreign(run)]
    facts = facts_of_each(
        len(foreign),
        model=model,
        device=device,
        seq=seq,
        devices=devices,
        global_batch=global_batch,
        dtype=dtype,
    )
    examined = []
    for given in runs:
        if given in foreign:
            examined.append(examine_foreign(one_log(given)[0], next(facts)))
            continue
        path, note = locate_run(given)
        if note:
            typer.echo(f"effprof: {note}", err=True)
        examined.append(examine(open_run(path)))
    emit(report.render_comparison(compare(examined)), output)
    return 0
