"""`effprof report`: a run as one HTML file with charts."""

from __future__ import annotations

import os
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
from effprof.errors import EffprofError

HTML = (".html", ".htm")
NAME = "report.html"


def command(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_DIR",
            help="A run directory, a directory of runs (its newest is taken), a profiler trace or a folder of them, "
            "or another tool's log.",
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
    model: ModelOption = None,
    device: DeviceOption = None,
    seq: SeqOption = None,
    devices: DevicesOption = None,
    global_batch: GlobalBatchOption = None,
    dtype: DtypeOption = None,
) -> int:
    """Writes a run as one HTML file with charts.

    Self-contained: efficiency, waterfall, time account, steps over time, memory, experts, ranks, telemetry.
    """
    from effprof.cli.advice import read_with
    from effprof.reports import html
    from effprof.reports.emit import emit

    if output is not None and os.path.isfile(output) and not output.lower().endswith(HTML):
        raise EffprofError(f"{output}: exists and is no .html file", "give another name, such as report.html")
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
    target = output or _beside(found.path)
    emit(html.render(found.analysis), target)
    typer.echo(f"effprof: wrote {target}")
    if found.complaint:
        raise found.complaint
    return 0


def _beside(path: str) -> str:
    """Where a report goes when nobody says: into the run's directory, or here where the run is in an object store."""
    if "://" in path:
        return NAME
    return os.path.join(path if os.path.isdir(path) else os.path.dirname(path) or ".", NAME)
