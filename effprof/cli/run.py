"""`effprof run`: measures a training command as it is, by putting the callback into the Trainers that it makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from effprof.errors import EffprofError

SCHEMA = "effprof.launch/1"  # run.json is effprof.run/1


def command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", help="The training command, such as python train.py.")
    ] = None,
    run_dir: Annotated[
        str | None, typer.Option("--run-dir", metavar="DIR", help="Where to record, instead of effprof_runs/<id>.")
    ] = None,
    kernel_window: Annotated[
        bool, typer.Option("--kernel-window", help="Also record a few steps with torch's profiler.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON document (effprof.launch/1); what COMMAND prints goes to stderr.")
    ] = False,
) -> int:
    """Measures a training command without a change to it.

    Adds EfficiencyCallback to every Trainer of Lightning and of transformers that COMMAND makes, in all its processes.

    Exit code: COMMAND's own (128 + N where signal N ended it); 2: it could not be started.
    """
    from effprof.callbacks.inject import outcome, prepare
    from effprof.cli.trials import need_command

    training = need_command(list(words or ()))
    settings: dict[str, Any] = {"run_dir": None if run_dir is None else os.path.abspath(run_dir)}
    if kernel_window:
        settings["kernel_window"] = True
    with tempfile.TemporaryDirectory(prefix="effprof-run-") as folder:
        code = _run(training, prepare(Path(folder), settings, os.environ), to_stderr=as_json)
        trainers, runs, missing = outcome(Path(folder))
    if note := _note(trainers, runs, missing):
        typer.echo(f"effprof: {note}", err=True)
    if as_json:
        import msgspec

        document = {"schema": SCHEMA, "command": training, "exit_code": code, "runs": runs}
        typer.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
    return code


def _run(training: list[str], environment: dict[str, str], to_stderr: bool) -> int:
    try:
        process = subprocess.Popen(training, env=environment, stdout=sys.stderr if to_stderr else None)
    except OSError as error:
        raise EffprofError(f"{training[0]}: {error.strerror or error}", "give the command as you type it") from error
    # Ctrl-C reaches the command by itself, as the terminal's; what is sent to this process alone is passed on
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    handlers = {number: signal.signal(number, lambda sent, _: process.send_signal(sent)) for number in _passed_on()}
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _passed_on() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


def _note(trainers: int, runs: list[str], missing: str) -> str:
    """Why nothing was recorded; empty where something was."""
    if runs:
        return ""
    if missing:
        return f"nothing was recorded: {missing}\neffprof: install effprof into the environment of the command"
    if trainers:
        return "nothing was recorded: a Trainer was made, but trained nothing that it finished"
    return (
        "nothing was recorded: the command made no Trainer of Lightning or transformers\n"
        "effprof: put one line into the script instead, see docs/integrations.md"
    )
