"""Writes a finished report to standard output or to a file."""

from __future__ import annotations

import sys
from pathlib import Path

from effprof.errors import EffprofError


def emit(text: str, output: str | None = None) -> None:
    """Write `text` to the file `output`, or to standard output.

    Raises:
        EffprofError: the file can't be written.
    """
    if output is not None:
        try:
            Path(output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise EffprofError(f"{output}: {error.strerror or error}", "give a path that can be written") from None
        return
    encoding = sys.stdout.encoding or "ascii"
    # a terminal without Unicode gets question marks in place of bars, not a traceback
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()
