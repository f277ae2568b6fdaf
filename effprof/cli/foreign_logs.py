"""Other tools' logs on the command line: which paths are such, and the options that say what a log lacks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from effprof.errors import EffprofError

if TYPE_CHECKING:
    from effprof.analysis.foreign import Given

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="CONFIG", help="config.json of the model, to recompute the MFU of another tool's log."
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Device of another tool's log, as `effprof device` names it."),
]
_OWN_MARKS = (b'"effprof.run/', b'"effprof.log/')


def given_facts(model: str | None, device: str | None, peak_tflops: float | None) -> Given:
    """What the user adds to a log.

    Raises:
        EffprofError: the model's config cannot be read.
    """
    from effprof.analysis.foreign import Given

    config = None
    if model is not None:
        from effprof.workload.config_file import read_config_file

        config = read_config_file(model)
    return Given(model=config, device=device, peak_tflops=peak_tflops)


def is_foreign(path: str) -> bool:
    """Whether a path is neither a run of effprof nor a trace: then it can only be another tool's log."""
    from effprof.analysis.locate import locate_run
    from effprof.trace.folder import is_trace_path

    if "://" in path or not os.path.exists(path) or is_trace_path(path):
        return False
    if os.path.isdir(path):
        run, _ = locate_run(path)
        is_run = os.path.exists(os.path.join(run, "run.json")) or any(
            name.startswith("attempt-") for name in os.listdir(run)
        )
        return not is_run and any(os.path.isfile(os.path.join(path, name)) for name in os.listdir(path))
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
        return not any(mark in start for mark in _OWN_MARKS)
    except OSError:
        return False


def logs_in(path: str) -> tuple[list[str], list[EffprofError]]:
    """The readable logs of a path, a file's own or those in a directory, and a complaint for each other file."""
    from effprof.runlog.importers.sniff import recognise

    if not os.path.isdir(path):
        return [path], []
    found, complaints = [], []
    for name in sorted(os.listdir(path)):
        file = os.path.join(path, name)
        if not os.path.isfile(file) or name.startswith("."):
            continue
        try:
            if recognise(file) is None:
                raise EffprofError(f"{file}: not recognised", "it is passed over")
            found.append(file)
        except EffprofError as error:
            complaints.append(error)
    if not found and complaints:
        raise EffprofError(
            f"{path}: not a run directory, and none of its {len(complaints)} files is a log of a known tool",
            "give the run directory that effprof named, or a log that `effprof analyze` can read (docs/logs.md)",
        )
    return found, complaints
