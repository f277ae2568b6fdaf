"""`effprof recommend`: what to change in a run, with evidence, a bounded gain, the knob and how to verify it."""

from __future__ import annotations

from typing import Annotated

import typer

from effprof.cli.foreign_logs import (
    DeviceOption,
    DevicesOption,
    DtypeOption,
    GlobalBatchOption,
    ModelOption,
    SeqOption,
)


def command(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_DIR",
            help="A run directory, a directory of runs (its newest is taken), a profiler trace or a folder of them, "
            "or another tool's log.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document (effprof.recommend/1).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown, for issues and wikis.")] = False,
    peak_tflops: Annotated[
        float | None,
        typer.Option(metavar="TFLOPS", help="Dense peak of one device, where the record has none or another."),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    seq: SeqOption = None,
    devices: DevicesOption = None,
    global_batch: GlobalBatchOption = None,
    dtype: DtypeOption = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE.")] = None,
) -> int:
    """Lists what to change first, by predicted gain.

    Findings in the order in which to try them. Gains are predicted: `effprof verify` tries them here.
    """
    from effprof.cli.advice import read_with
    from effprof.reports import choose, recommendations
    from effprof.reports.emit import emit

    choose(as_json=as_json, as_markdown=as_markdown)
    found = read_with(
        run,
        peak_tflops,
        model=model,
        device=device,
        seq=seq,
        devices=devices,
        global_batch=global_batch,
        dtype=dtype,
    )
    text = recommendations.render(
        found.recommendations, found.analysis.run.framework, as_json=as_json, as_markdown=as_markdown
    )
    emit(text, output)
    if found.complaint:
        raise found.complaint
    return 0
