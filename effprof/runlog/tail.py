"""Follows a run that is being written: reads only what is new, and keeps only its latest steps.

A look at a run costs one `stat` per log and the bytes that were added since the last one. A log that is found long is
entered near its end. A file that was rotated is read to its end, unless it was compacted by then, and the new one from
its beginning; a line that is still being written waits for its end.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from effprof.errors import EffprofError
from effprof.runlog.columns import Joiner, StepBlock
from effprof.runlog.layout import ATTEMPT, RUN_FILE, SEGMENT
from effprof.runlog.reader import Attempt, NodeLog, RankLog, Run, SegmentLines, build_rank, check_schema
from effprof.runlog.schema import (
    LOG_SCHEMA,
    RUN_SCHEMA,
    End,
    Event,
    Experts,
    Header,
    Kernels,
    Memory,
    Probe,
    RunRecord,
    Span,
    Telemetry,
)

STEPS = 200  # of each rank that are kept
ENTER_BYTES = 512 << 10  # from the end of a log that is longer when it is first seen
ROTATED_BYTES = 64 << 20
HEAD_BYTES = 64 << 10
EVENTS = 50
_Line = StepBlock | Header | Span | Memory | Experts | Kernels | Probe | Telemetry | Event | End
_decoder = msgspec.json.Decoder(_Line)


@dataclass
class FileTail:
    """One log file, followed."""

    path: Path
    enter_bytes: int = ENTER_BYTES
    header: Header | None = None
    read_bytes: int = 0  # so far
    _inode: int = -1
    _offset: int = 0

    def poll(self) -> Iterator[Any]:
        """The lines that were completed since the last call; a header only in `header`."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return
        if status.st_ino != self._inode or status.st_size < self._offset:
            yield from self._left_behind()
            self._inode, self._offset, self.header = status.st_ino, 0, None
        if status.st_size == self._offset:
            return
        with open(self.path, "rb") as file:
            if self.header is None and not self._enter(file, status.st_size):
                return
            yield from self._read(file, status.st_size)

    def _left_behind(self) -> Iterator[Any]:
        """What was added to the last file before it was rotated; nothing once it was compacted."""
        for path in self.path.parent.glob(f"{self.path.stem}.*{self.path.suffix}") if self.header else ():
            with suppress(FileNotFoundError), open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino == self._inode:
                    yield from self._read(file, status.st_size)

    def _read(self, file: Any, size: int) -> Iterator[Any]:
        """The whole lines between where following stands and `size`."""
        file.seek(self._offset)
        data = file.read(size - self._offset)
        whole, end, _ = data.rpartition(b"\n")
        self._offset += len(whole) + len(end)
        self.read_bytes += len(data)
        for text in whole.split(b"\n") if end else ():
            try:
                line = _decoder.decode(text)
            except msgspec.DecodeError:
                continue  # of a type that this version does not know, or broken: `analyze` counts them
            if isinstance(line, Header):
                self.header = line
            else:
                yield line

    def _enter(self, file: Any, size: int) -> bool:
        """Read the header, and go to where following begins; False while the first line is not whole."""
        first = file.readline(HEAD_BYTES)
        if not first.endswith(b"\n"):
            return False
        try:
            fields = msgspec.json.decode(first, type=dict[str, Any])
            check_schema(str(self.path), fields.get("schema", ""), LOG_SCHEMA)
            self.header = msgspec.convert(fields, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
            raise EffprofError(f"{self.path}: not an effprof log ({error})", "give a run directory") from None
        self.read_bytes += len(first)
        self._offset = len(first)
        if size - self._offset > self.enter_bytes:
            file.seek(size - self.enter_bytes)
            self._offset = size - self.enter_bytes + len(file.readline())
        return True


@dataclass
class _Rank:
    tail: FileTail
    blocks: deque[StepBlock] = field(default_factory=deque)
    rows: int = 0
    memory: Memory | None = None
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS))
    end: End | None = None

    def poll(self, keep: int) -> None:
        for line in self.tail.poll():
            if isinstance(line, StepBlock):
                self.blocks.append(line)
                self.rows += line.n
                while self.rows - self.blocks[0].n >= keep:
                    self.rows -= self.blocks.popleft().n
            elif isinstance(line, Memory):
                self.memory = line
            elif isinstance(line, Event):
                self.events.append(line)
            elif isinstance(line, End):
                self.end = line

    def log(self, keep: int) -> RankLog | None:
        if self.tail.header is None:
            return None
        path = str(self.tail.path)
        steps = Joiner(path)
        for block in self.blocks:
            steps.add(StepBlock(n=block.n, columns={name: list(values) for name, values in block.columns.items()}))
        lines = [*([self.memory] if self.memory else []), *self.events, *([self.end] if self.end else [])]
        rank = build_rank([SegmentLines(self.tail.header, steps, lines)], path)
        rank.columns = {name: values[-keep:] for name, values in rank.columns.items()}
        return rank


@dataclass
class _Node:
    tail: FileTail
    probes: dict[str, Probe] = field(default_factory=dict)
    samples: deque[Telemetry] = field(default_factory=lambda: deque(maxlen=2))

    def poll(self) -> None:
        for line in self.tail.poll():
            if isinstance(line, Probe):
                self.probes[line.probe] = line
            elif isinstance(line, Telemetry):
                self.samples.append(line)

    def log(self) -> NodeLog | None:
        if self.tail.header is None:
            return None
        return NodeLog(self.tail.header, list(self.probes.values()), list(self.samples), [], 0, torn=False)


def require_run(path: str) -> None:
    """Refuse what can't become a run: a file, and a directory that holds other things.

    Raises:
        EffprofError: with what to give instead.
    """
    if os.path.isfile(path):
        raise EffprofError(f"{path}: a file", "watch follows effprof's own runs: give the run directory")
    if not os.path.isdir(path):
        raise EffprofError(f"{path}: no such directory", "give the run directory that training names at its start")
    names = os.listdir(path)
    if names and RUN_FILE not in names and not any(map(ATTEMPT.match, names)):
        raise EffprofError(f"{path}: not a run directory", "give the one that holds run.json")


class RunTail:
    """A run directory, followed.

    Args:
        path: a run directory on a file system of this machine (a mounted one counts).
        steps: how many of each rank's latest steps are kept.
    """

    def __init__(self, path: str, steps: int = STEPS) -> None:
        self._path = Path(path)
        self._keep = steps
        self._attempt = -1
        self._ranks: dict[str, _Rank] = {}
        self._nodes: dict[str, _Node] = {}
        self._record = RunRecord(id=self._path.name)
        self._record_stamp = (-1, -1)
        self._left_bytes = 0

    @property
    def read_bytes(self) -> int:
        """Bytes read so far."""
        tails = [each.tail for each in self._ranks.values()] + [each.tail for each in self._nodes.values()]
        return self._left_bytes + sum(tail.read_bytes for tail in tails)

    def poll(self) -> Run | None:
        """Read what is new: the run with each rank's latest steps; None while there is no log of a rank.

        Raises:
            EffprofError: a file is not effprof's, was written by a newer version, or holds an impossible time.
        """
        attempt = self._newest_attempt()
        if attempt is None:
            return None
        self._read_record()
        self._find(attempt)
        for rank in self._ranks.values():
            rank.poll(self._keep)
        for node in self._nodes.values():
            node.poll()
        ranks = [log for log in (entry.log(self._keep) for entry in self._ranks.values()) if log is not None]
        if not ranks:
            return None
        nodes = [log for log in (entry.log() for entry in self._nodes.values()) if log is not None]
        ranks.sort(key=lambda rank: rank.header.rank)
        return Run(str(self._path), self._record, [Attempt(self._attempt, ranks, nodes)], [])

    def _newest_attempt(self) -> Path | None:
        found = [(int(match["number"]), each) for each in os.listdir(self._path) if (match := ATTEMPT.match(each))]
        if not found:
            return None
        number, name = max(found)
        if number != self._attempt:
            self._left_bytes = self.read_bytes
            self._attempt, self._ranks, self._nodes = number, {}, {}
        return self._path / name

    def _find(self, attempt: Path) -> None:
        for name in os.listdir(attempt):
            match = SEGMENT.match(name)
            if match is None or match["segment"]:
                continue
            if match["role"] == "rank" and name not in self._ranks:
                self._ranks[name] = _Rank(FileTail(attempt / name))
            elif match["role"] == "node" and name not in self._nodes:
                # what its readings mean stands at its beginning; rotation keeps it short
                self._nodes[name] = _Node(FileTail(attempt / name, enter_bytes=ROTATED_BYTES))

    def _read_record(self) -> None:
        path = self._path / RUN_FILE
        try:
            status = os.stat(path)
            stamp = (status.st_ino, status.st_mtime_ns)
            if stamp == self._record_stamp:
                return
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        try:
            check_schema(str(path), msgspec.json.decode(raw, type=dict[str, Any]).get("schema", ""), RUN_SCHEMA)
            self._record = msgspec.json.decode(raw, type=RunRecord)
        except msgspec.DecodeError as error:
            raise EffprofError(f"{path}: not effprof's run.json ({error})", "give a run directory") from None
        self._record_stamp = stamp
        self._left_bytes += len(raw)
