"""Other tools' logs on the command line: which paths are such, and the options that say what a log lacks."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
# A directory with more is no place where somebody keeps logs, such as a home directory given by mistake.
_MOST_FILES = 2000
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
        return not is_run and next(_files_below(path), None) is not None
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
        return not any(mark in start for mark in _OWN_MARKS)
    except OSError:
        return False


def one_log(path: str) -> tuple[str, EffprofError | None]:
    """(file, complaint): the log that a path means where only one can be shown; says which of a directory's it is.

    Raises:
        EffprofError: none of a directory's files is a log of a known tool.
    """
    logs, complaints = logs_in(path)
    if len(logs) > 1:
        name = os.path.relpath(logs[0], path)
        typer.echo(f"effprof: {path} holds {len(logs)} logs; this is the first, {name}", err=True)
    return logs[0], complaints[0] if complaints else None


def logs_in(path: str) -> tuple[list[str], list[EffprofError]]:
    """The readable logs of a path, a file's own or those in and below a directory; a complaint for each other file.

    Raises:
        EffprofError: none of a directory's files is a log of a known tool.
    """
    from effprof.runlog.importers.sniff import recognise

    if not os.path.isdir(path):
        return [path], []
    found, complaints = [], []
    for file in _files_below(path):
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


def _files_below(path: str) -> Iterator[str]:
    """Files in and below a directory in the order of their names, hidden ones passed over, as many as `_MOST_FILES`."""
    count = 0
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                count += 1
                if count > _MOST_FILES:
                    return
                yield os.path.join(folder, name)
