"""Writes a run's record: lines appended straight to the file, so that a killed process loses nothing it wrote."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from effprof.runlog.layout import RUN_FILE, rank_file
from effprof.runlog.schema import Header, Line, RunRecord, Steps

ROTATE_BYTES = 16 << 20
COMPACT_STEPS = 1000
# Lines handled between two naps while compacting, so that the training thread is not kept from the interpreter.
_LINES_PER_NAP = 64

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


def write_run_record(run_dir: Path, record: RunRecord) -> None:
    """Write `run.json` atomically: readers see the old or the new one, never half."""
    text = msgspec.json.format(_encoder.encode(record), indent=1)
    temporary = run_dir / f".{RUN_FILE}.{os.getpid()}"
    temporary.write_bytes(text + b"\n")
    os.replace(temporary, run_dir / RUN_FILE)


class RankWriter:
    """Appends typed lines to one rank's log, rotates it by size and compacts what it closed.

    Every `write` is one `write(2)` of whole lines: what was written survives SIGKILL of the process.

    Args:
        directory: the attempt's directory, created where missing.
        header: opens each segment; its `segment` is counted up on rotation.
        rotate_bytes: size at which a segment is closed.

    Raises:
        FileExistsError: the rank already has a log in this attempt.
        OSError: the directory can't be written.
    """

    def __init__(self, directory: Path, header: Header, rotate_bytes: int = ROTATE_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._header = header
        self._rotate_bytes = rotate_bytes
        self.path = directory / rank_file(header.rank)
        self._descriptor = self._open(os.O_EXCL)

    def _open(self, flags: int = 0) -> int:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o644)
        self._size = os.write(descriptor, _encoder.encode(self._header) + b"\n")
        return descriptor

    def write(self, lines: list[Line]) -> None:
        """Append `lines` with one system call, then rotate if the segment has grown past its size."""
        if not lines:
            return
        data = b"".join(_encoder.encode(line) + b"\n" for line in lines)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._size += len(data)
        if self._size > self._rotate_bytes:
            self._rotate()

    def close(self) -> None:
        """Close the live segment and compact it in place."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        with contextlib.suppress(OSError):
            compact(self.path)

    def _rotate(self) -> None:
        os.close(self._descriptor)
        closed = self._directory / rank_file(self._header.rank, self._header.segment)
        os.replace(self.path, closed)
        self._header = msgspec.structs.replace(self._header, segment=self._header.segment + 1)
        self._descriptor = self._open()
        compact(closed, nap=time.sleep)


def compact(path: Path, nap: Callable[[float], None] | None = None) -> None:
    """Merge a closed segment's small step blocks into blocks of at least 1,000 steps; other lines keep their order.

    The result replaces the file atomically. Lines that don't decode are kept as they are.
    """
    temporary = path.with_suffix(".compacting")
    pending: list[Steps] = []
    with open(path, "rb") as source, open(temporary, "wb") as target:

        def release() -> None:
            if pending:
                target.write(_encoder.encode(merge(pending)) + b"\n")
                pending.clear()

        for number, raw in enumerate(source):
            if nap and number % _LINES_PER_NAP == 0:
                nap(0.001)
            try:
                line = _decoder.decode(raw)
            except msgspec.DecodeError:
                target.write(raw)
                continue
            if not isinstance(line, Steps):
                target.write(raw)
                continue
            if pending and set(line.columns) != set(pending[0].columns):
                release()
            pending.append(line)
            if sum(block.n for block in pending) >= COMPACT_STEPS:
                release()
        release()
    os.replace(temporary, path)


def merge(blocks: list[Steps]) -> Steps:
    """One block out of several with the same columns."""
    columns = {name: [value for block in blocks for value in block.columns[name]] for name in blocks[0].columns}
    return Steps(n=sum(block.n for block in blocks), columns=columns)
