"""Which format a file is in, by what stands in it."""

from __future__ import annotations

import contextlib
import os
import re

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head, Importer, all_importers
from effprof.runlog.importers.text import read_lines

_RAW_BYTES = 256 * 1024
_FIRST_LINES = 400
_SAMPLED_LINES = 2000
_MOST_LINES = 300_000  # of a log whose head is longer than this, the rest would not help
_MOST_BYTES = 128 * 1024 * 1024
_MOST_CHARACTERS = 4096  # of a line: every format tries its pattern on it
# A line that could be a step of anything: cheap, and true of every format's.
_STEPLIKE = re.compile(r"step|iter|loss|epoch|tok|sec|MLLOG|latency|update|train", re.IGNORECASE)
_POINTER = b"version https://git-lfs.github.com/spec/"


def head_of(path: str) -> Head:
    """What formats are told by: the first bytes and lines, and lines further on that could be steps.

    Raises:
        EffprofError: the file cannot be read, is empty, or is a pointer of Git LFS and not the file itself.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_RAW_BYTES)
    except OSError as error:
        raise EffprofError(f"{path}: {error.strerror or error}", "give a log file that can be read") from error
    if not raw.strip():
        raise EffprofError(f"{path}: empty", "give a log with at least one step")
    if raw.startswith(_POINTER):
        raise EffprofError(f"{path}: a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`")
    is_text = b"\x00" not in raw[:4096] or raw[:2] == b"\x1f\x8b"
    return Head(path=path, raw=raw, lines=_sample(path) if is_text else [])


def recognise(path: str) -> Importer | None:
    """The format that fits best; None where none does."""
    head = head_of(path)
    scores = [(importer.score(head), importer) for importer in all_importers()]
    best, importer = max(scores, key=lambda pair: pair[0])
    return importer if best > 0 else None


def read_foreign(path: str) -> ForeignLog:
    """A file of another tool, whichever wrote it.

    Raises:
        EffprofError: no known tool, or nothing of a training in it.
    """
    importer = recognise(_first_file(path) if os.path.isdir(path) else path)
    if importer is None:
        raise EffprofError(
            f"{path}: not an effprof log, nor a trace, nor a log of a known tool",
            "the formats are listed in docs/logs.md",
        )
    return importer.read(path)


def _first_file(folder: str) -> str:
    """Of a folder whose files are one log."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        with contextlib.suppress(EffprofError):  # an empty file among them
            if os.path.isfile(path) and joins_folder(recognise(path)):
                return path
    raise EffprofError(f"{folder}: a folder that is no log of one tool", "give one of its files")


def joins_folder(importer: Importer | None) -> bool:
    """Whether the files that it reads in one folder are parts of one log."""
    return bool(getattr(importer, "is_folder_one_log", False))


def _sample(path: str) -> list[str]:
    lines: list[str] = []
    steplike = 0
    for number, line in enumerate(read_lines(path, _MOST_BYTES)):
        if number < _FIRST_LINES:
            lines.append(line[:_MOST_CHARACTERS])
        elif _STEPLIKE.search(line, 0, 4000):
            lines.append(line[:_MOST_CHARACTERS])
            steplike += 1
        if steplike >= _SAMPLED_LINES or number > _MOST_LINES:
            break
    return lines
