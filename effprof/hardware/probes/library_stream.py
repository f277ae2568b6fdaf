"""A vendor's Python library, asked once a second by a process of its own that prints what it says as lines of JSON.

A call into a driver that hangs then stops that process alone, and the probe reads it like any tool that streams.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from effprof.hardware.probes.base import Reason
from effprof.hardware.probes.tool import Command, Sample

PERIOD_S = 1.0
_DECODER = msgspec.json.Decoder(list[Sample])


class NoValue(Exception):
    """A library's answer that is no number, with the reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def library(module: str, name: str) -> Command:
    """The command that streams a module of this folder, which asks the library `name`."""
    return Command((sys.executable, "-m", f"{__package__}.{module}"), parse, is_stream=True, name=name)


def parse(text: str) -> Sequence[Sample]:
    """The samples of one line.

    Raises:
        ValueError: the line is no sample, such as what the library itself printed.
    """
    return _DECODER.decode(text)


def ask(questions: Mapping[str, Callable[[], float]], why: Callable[[Exception], Reason]) -> dict[str, Any]:
    """`values` and `reasons` of a `Sample`: a question that fails costs its own reading and no other.

    Args:
        questions: reading → call that gives it.
        why: the reason behind an exception of the library.
    """
    values: dict[str, float | None] = {}
    reasons: dict[str, Reason] = {}
    for name, call in questions.items():
        try:
            values[name] = float(call())
        except NoValue as error:
            values[name], reasons[name] = None, error.reason
        except Exception as error:
            values[name], reasons[name] = None, why(error)
    return {"values": values, "reasons": reasons}


def run(open_library: Callable[[], Callable[[], list[Sample]]]) -> None:
    """Print a line per period for as long as anybody reads them; one line that says why where there is no device."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # libraries print to standard output now and then
    try:
        read = open_library()
    except Exception as error:
        out.write(f"{type(error).__name__}: {error}".replace("\n", " ").encode() + b"\n")
        return
    with contextlib.suppress(BrokenPipeError):
        while True:
            out.write(msgspec.json.encode(read()) + b"\n")
            time.sleep(PERIOD_S)
