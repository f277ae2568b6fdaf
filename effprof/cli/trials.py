"""What `verify` and `tune` share: a budget, a change and a command as they are typed, and the exit code."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer

from effprof.errors import EffprofError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
INTERRUPTED = 130


def read_budget(text: str) -> float:
    """Seconds: "90", "90s", "5m", "1.5h".

    Raises:
        EffprofError: not a duration.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    seconds = float(found[1]) * _UNITS[found[2] or ""] if found else 0.0
    if seconds <= 0:
        raise EffprofError(f"--budget {text}: not a duration", "give 90s, 5m or 1h")
    return seconds


def read_changes(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs as changes; a value is JSON where it reads as such, text otherwise.

    Raises:
        EffprofError: a pair without "=", a change that is not known or a value that does not fit it.
    """
    from effprof.advise.changes import check_changes

    changes: dict[str, Any] = {}
    for pair in given:
        name, sign, text = pair.partition("=")
        if not sign:
            raise EffprofError(f"--change {pair}: no value", "give NAME=VALUE, such as precision=bf16-mixed")
        try:
            changes[name] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            changes[name] = text
    check_changes(changes)
    return changes


def need_command(words: Sequence[str]) -> list[str]:
    """The training command.

    Raises:
        EffprofError: there is none.
    """
    if not words:
        raise EffprofError("no training command", "give it after --, as in: -- python train.py")
    return list(words)


def trials_directory(kind: str, run: str | None = None) -> Path:
    """Where the trials of one call go: into the run they belong to, else below the working directory."""
    stamp = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"
    return Path(run) / "trials" / f"{kind}-{stamp}" if run else Path("effprof_trials") / f"{kind}-{stamp}"


def tell(text: str) -> None:
    """Progress, beside the result on standard output."""
    typer.echo(f"effprof: {text}", err=True)
