"""`effprof analyze`: what a run used of its accelerators, and where its time went."""

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


def command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Run directories, a directory of runs (its newest is taken), profiler traces, or other tools' logs; "
            "or folders of them.",
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
    model: ModelOption = None,
    device: DeviceOption = None,
    seq: SeqOption = None,
    devices: DevicesOption = None,
    global_batch: GlobalBatchOption = None,
    dtype: DtypeOption = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes that read the ranks' logs; by default one per 128 MiB and core."),
    ] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE.")] = None,
) -> int:
    """Shows a run's efficiency and where its time went.

    Efficiency, time account, waterfall, memory, expert load, ranks, warnings and what to change; several runs at once.
    """
    from effprof.cli.advice import check_peak, read, read_log
    from effprof.cli.foreign_logs import given_facts, is_foreign, logs_in, need_foreign
    from effprof.reports import choose
    from effprof.reports.emit import emit

    check_peak(peak_tflops)
    foreign = [given for given in runs if is_foreign(given)]
    need_foreign(
        len(foreign) + sum(not os.path.exists(given) for given in runs),
        model=model,
        device=device,
        seq=seq,
        devices=devices,
        global_batch=global_batch,
        dtype=dtype,
    )
    report = choose(as_json=as_json, as_markdown=as_markdown)
    facts = given_facts(model, device, peak_tflops, seq=seq, devices=devices, global_batch=global_batch, dtype=dtype)
    rendered: list[str] = []
    problems: list[EffprofError] = []
    paths: list[str] = []
    from_folder: set[str] = set()
    unknown: list[EffprofError] = []
    for given in runs:
        if given in foreign and os.path.isdir(given):
            logs, complaints = logs_in(given)
            paths += logs
            from_folder |= set(logs)
            unknown += complaints
        else:
            paths.append(given)
    for path in paths:
        try:
            is_resolved = path in from_folder
            found = read_log(path, facts) if is_resolved else read(path, peak_tflops, workers, facts)
        except EffprofError as error:
            # a folder's file that only looked like a log is passed over, as those are that did not
            (unknown if path in from_folder else problems).append(error)
            continue
        found.analysis.timeline = None  # long, and only drawn: `effprof report` keeps it
        rendered.append(report.render(found.analysis))
        problems += [found.complaint] if found.complaint else []
    if unknown and not rendered and not problems:
        problems.append(unknown.pop())
    if rendered:
        emit(("" if as_json else "\n").join(rendered), output)
    for note in unknown:
        typer.echo(f"effprof: {note}", err=True)
    for problem in problems[:-1]:
        typer.echo(f"effprof: {problem}", err=True)
    if problems:
        raise problems[-1]
    return 0
