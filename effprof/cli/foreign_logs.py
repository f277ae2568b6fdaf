"""Other tools' logs on the command line: which paths are such, and the options that say what a log lacks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effprof.errors import EffprofError

if TYPE_CHECKING:
    from effprof.analysis.foreign_given import Given

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
SeqOption = Annotated[
    int | None, typer.Option("--seq", metavar="N", help="Tokens of a sequence, where another tool's log lacks it.")
]
DevicesOption = Annotated[
    int | None,
    typer.Option("--devices", metavar="N", help="Devices of the whole job, where another tool's log lacks it."),
]
GlobalBatchOption = Annotated[
    int | None,
    typer.Option(
        "--global-batch",
        metavar="N",
        help="Sequences of one optimizer step over all devices and micro-batches, where another tool's log lacks it.",
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="DTYPE", help="bf16, fp16, fp8, fp32, …: of the matmuls in another tool's log, else bf16."
    ),
]


def each_log(name: str, metavar: str, what: str) -> Any:
    """An option of a command that reads several logs: given once it holds for all, else once per log in their order."""
    return typer.Option(name, metavar=metavar, help=f"Other tools' logs: {what}; once for all, or once per log.")


# A directory with more is no place where somebody keeps logs, such as a home directory given by mistake.
_MOST_FILES = 2000
_OWN_MARKS = (b'"effprof.run/', b'"effprof.log/')


def given_facts(
    model: str | None = None,
    device: str | None = None,
    peak_tflops: float | None = None,
    *,
    seq: int | None = None,
    devices: int | None = None,
    global_batch: int | None = None,
    dtype: str | None = None,
) -> Given:
    """What the user adds to a log.

    Raises:
        EffprofError: the model's config cannot be read, or a fact is none.
    """
    from effprof.analysis.foreign_given import Given

    config = None
    if model is not None:
        from effprof.workload.config_file import read_config_file

        config = read_config_file(model)
    return Given(
        model=config,
        device=device,
        dtype=dtype,
        peak_tflops=peak_tflops,
        sequence_length=seq,
        devices=devices,
        global_batch=global_batch,
    )


def need_foreign(logs: int, **options: Any) -> None:
    """Refuse facts of another tool's log where there is none: effprof's own record says them.

    Raises:
        EffprofError: one of the options was given and `logs` is 0.
    """
    named = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if named and not logs:
        raise EffprofError(
            f"{', '.join(named)}: for other tools' logs, and none is given", "leave it out: a run's record says it"
        )


def facts_of_each(logs: int, **options: Sequence[Any] | None) -> Iterator[Given]:
    """What the user adds to each of several logs, from options that were given once for all or once per log.

    Raises:
        EffprofError: an option was given another number of times, or `given_facts` refuses it.
    """
    need_foreign(logs, **options)
    for name, values in options.items():
        if values and len(values) not in (1, logs):
            option = f"--{name.replace('_', '-')}"
            raise EffprofError(
                f"{option} is given {len(values)} times for {logs} logs of other tools",
                "give it once for all, or once per log in their order",
            )
    each = [
        given_facts(**{name: values[min(number, len(values) - 1)] for name, values in options.items() if values})
        for number in range(logs)
    ]
    return iter(each)


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

    A log in several files, such as TensorBoard's after a restart, is the directory that holds them.

    Raises:
        EffprofError: none of a directory's files is a log of a known tool.
    """
    from effprof.runlog.importers.hparams import NAME as SETTINGS
    from effprof.runlog.importers.sniff import joins_folder, recognise

    if not os.path.isdir(path):
        return [path], []
    found: list[str] = []
    complaints: list[EffprofError] = []
    telling: list[EffprofError] = []
    parts: dict[str, list[str]] = {}  # folder → its files that are one log
    beside: list[EffprofError] = []  # read together with the log that they belong to
    for file in _files_below(path):
        try:
            if os.path.basename(file) == SETTINGS:
                beside.append(EffprofError(f"{file}: not recognised", "settings alone are no log"))
                continue
            importer = recognise(file)
            if importer is None:
                raise EffprofError(f"{file}: not recognised", "it is passed over")
            found.append(file)
            if joins_folder(importer):
                parts.setdefault(os.path.dirname(file), []).append(file)
        except EffprofError as error:
            complaints.append(error)
            if "not recognised" not in str(error):
                telling.append(error)
    for folder, files in parts.items():
        if len(files) > 1:
            found[found.index(files[0])] = folder
            found = [each for each in found if each not in files]
    complaints += [] if found else beside
    if not found and telling:  # a file that can't be read says more than those that are something else
        raise telling[0]
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
