"""Reads a run's record back into columns, forgiving what a crash leaves and refusing what would make numbers wrong."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from effprof.errors import EffprofError
from effprof.runlog.columns import (
    BULK_BYTES,
    RANKS_IN_MEMORY,
    BulkBlock,
    ColumnFile,
    Joiner,
    StepBlock,
    bad_time,
    length_of,
)
from effprof.runlog.files import Files
from effprof.runlog.layout import ATTEMPT, RUN_FILE, SEGMENT
from effprof.runlog.parallel import in_order
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

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import numpy as np
    from numpy.typing import NDArray

_Other = Header | Span | Memory | Experts | Kernels | Probe | Telemetry | Event | End
_decoder = msgspec.json.Decoder(StepBlock | _Other)
_bulk_decoder = msgspec.json.Decoder(BulkBlock | _Other)


@dataclass
class Problem:
    """Something in the record that a reader of its numbers should know."""

    code: str
    message: str


@dataclass
class SegmentLines:
    """What one log file held, in the order written; steps apart."""

    header: Header
    steps: Joiner
    lines: list[Any] = field(default_factory=list)
    skipped: int = 0
    torn: bool = False


@dataclass
class RankLog:
    """One rank's log of one attempt. `columns` maps a step column to float64 values, NaN where the log has null."""

    header: Header
    columns: Mapping[str, NDArray[np.float64]]
    spans: list[Span]
    memory: list[Memory]
    experts: list[Experts]
    events: list[Event]
    end: End | None
    last_ns: int
    skipped_lines: int
    torn: bool
    kernels: list[Kernels] = field(default_factory=list)

    def wall(self, monotonic_ns: float) -> float:
        """Unix time of this host's monotonic clock reading."""
        return self.header.wall_s + (monotonic_ns - self.header.monotonic_ns) / 1e9

    @property
    def steps(self) -> int:
        """Number of finished optimizer steps in the log."""
        return length_of(self.columns)


@dataclass
class NodeLog:
    """One node's telemetry of one attempt."""

    header: Header
    probes: list[Probe]
    samples: list[Telemetry]
    events: list[Event]
    skipped_lines: int
    torn: bool


@dataclass
class Attempt:
    """One start of the job's processes: its rank logs and node logs, by number."""

    index: int
    ranks: list[RankLog]
    nodes: list[NodeLog]


@dataclass
class Run:
    """A run as read from disk."""

    path: str
    record: RunRecord
    attempts: list[Attempt]
    problems: list[Problem]


def open_run(path: str, executor: Executor | None = None) -> Run:
    """Read the run at `path`: its directory, its `run.json`, or a single rank log.

    Args:
        path: local, or with a protocol that fsspec knows.
        executor: reads the logs of several ranks at a time; what is read is the same without one.

    Raises:
        EffprofError: there is no such path, it can't be read, it holds no record, the record was written by a newer
            effprof, a log is cut inside its first line, two runs share the directory, or a time in it is not a
            finite, non-negative number.
    """
    files = Files(path)
    files.require()
    if files.is_file():
        name = files.name(path)
        if name != RUN_FILE:
            return _open_file(files, path)
        files = Files(files.parent(path))
    return _open_directory(files, executor)


def find_runs(path: str) -> list[str]:
    """Run directories at or directly below `path`, by name; the path itself where it is a run."""
    files = Files(path)
    if not files.exists() or files.is_file() or _is_run(files):
        return [path]
    return [child for child in files.directories() if _is_run(Files(child))]


def _is_run(files: Files) -> bool:
    return RUN_FILE in files.names() or any(ATTEMPT.match(name) for name in files.names())


def _open_file(files: Files, path: str) -> Run:
    problems: list[Problem] = []
    segment = read_segment(files, path, problems)
    if segment.header.role == "node":
        raise EffprofError(
            f"{path}: a node's telemetry holds no steps", "give the run directory, which holds the rank logs too"
        )
    problems.append(Problem("single_log", "read from one rank's log alone: run.json and other ranks were not read"))
    rank = build_rank([segment], path)
    return Run(path, RunRecord(id=segment.header.run_id), [Attempt(segment.header.attempt, [rank], [])], problems)


def _open_directory(files: Files, executor: Executor | None) -> Run:
    problems: list[Problem] = []
    if not files.names():
        raise EffprofError(f"{files.path}: empty directory", "give a run directory: the one that holds run.json")
    record = _read_record(files)
    attempts = [
        attempt
        for child in files.directories()
        if (match := ATTEMPT.match(files.name(child)))
        and (attempt := _read_attempt(Files(child), int(match["number"]), problems, executor)).ranks
    ]
    attempts.sort(key=lambda attempt: attempt.index)
    if not attempts:
        where = "no attempt-NNN/rank-NNNNN.ndjson below it"
        raise EffprofError(f"{files.path}: not a run directory ({where})", "give the directory that holds run.json")
    ids = {rank.header.run_id for attempt in attempts for rank in attempt.ranks}
    if record is not None:
        ids.add(record.id)
    if len(ids) > 1:
        raise EffprofError(
            f"{files.path}: records of {len(ids)} runs in one directory: {', '.join(sorted(ids))}",
            "move each run's attempt directories into a directory of its own",
        )
    if record is None:
        problems.append(Problem("no_run_record", f"{RUN_FILE} is missing: model, FLOPs and hardware are not known"))
        record = RunRecord(id=next(iter(ids)))
    return Run(files.path, record, attempts, problems)


def _read_record(files: Files) -> RunRecord | None:
    if RUN_FILE not in files.names():
        return None
    path = files.join(RUN_FILE)
    raw = files.read(path)
    try:
        schema = msgspec.json.decode(raw, type=dict[str, Any]).get("schema", "")
        check_schema(path, schema, RUN_SCHEMA)
        return msgspec.json.decode(raw, type=RunRecord)
    except msgspec.DecodeError as error:
        raise EffprofError(f"{path}: not effprof's run.json ({error})", "give a directory that effprof wrote") from None


def _read_attempt(files: Files, index: int, problems: list[Problem], executor: Executor | None) -> Attempt:
    groups: dict[tuple[str, int], list[tuple[float, str]]] = {}
    for name in files.names():
        if match := SEGMENT.match(name):
            order = float(match["segment"]) if match["segment"] else math.inf
            groups.setdefault((match["role"], int(match["number"])), []).append((order, files.join(name)))
    attempt = Attempt(index, [], [])
    store = ColumnFile() if sum(role == "rank" for role, _ in groups) > RANKS_IN_MEMORY else None
    jobs = [(files, role, [path for _, path in sorted(paths)]) for (role, _), paths in sorted(groups.items())]
    for log, found in in_order(executor, _read_log, jobs):
        problems += found
        if isinstance(log, NodeLog):
            attempt.nodes.append(log)
            continue
        if store is not None:
            log.columns = store.put(log.columns)
        attempt.ranks.append(log)
    return attempt


def _read_log(job: tuple[Files, str, list[str]]) -> tuple[RankLog | NodeLog, list[Problem]]:
    files, role, paths = job
    problems: list[Problem] = []
    segments = [read_segment(files, path, problems) for path in paths]
    return build_rank(segments, paths[0]) if role == "rank" else build_node(segments), problems


def check_schema(path: str, found: str, known: str) -> None:
    """Refuse what is not effprof's, or was written by a newer version of it."""
    family, _, version = known.rpartition("/")
    found_family, _, found_version = str(found).rpartition("/")
    if found_family != family or not found_version.isdigit():
        raise EffprofError(f"{path}: not an effprof log (no schema {known!r} in it)", "give a run directory")
    if int(found_version) > int(version):
        raise EffprofError(
            f"{path}: written with schema {found}, this effprof reads up to {known}", "upgrade effprof to read it"
        )


def read_segment(files: Files, path: str, problems: list[Problem]) -> SegmentLines:
    """Decode one log file. A torn last line and unknown line types are counted; a header must be whole."""
    lines = io.BytesIO(files.read(path))  # shares the bytes and copies a line at a time
    first = lines.readline()
    segment = SegmentLines(_read_header(path, first.rstrip(b"\n"), first.endswith(b"\n")), Joiner(path))
    unknown = 0
    for number, text in enumerate(lines, start=2):
        if not text.strip():
            continue
        if not text.endswith(b"\n"):
            segment.torn = True
            segment.skipped += 1
            break
        try:
            line = _decode(text)
        except msgspec.DecodeError:
            _refuse_non_finite(path, number, text)
            segment.skipped += 1
            unknown += _type_of(text) is not None
            continue
        if isinstance(line, StepBlock):
            segment.steps.add(line)
        elif isinstance(line, _Arrays):
            segment.steps.add_arrays(line.n, line.columns)
        else:
            segment.lines.append(line)
    broken = segment.skipped - unknown - segment.torn
    if unknown:
        problems.append(Problem("unknown_lines", f"{path}: {unknown} lines of a type this version does not know"))
    if broken:
        problems.append(Problem("broken_lines", f"{path}: {broken} lines could not be decoded and were skipped"))
    if segment.torn:
        problems.append(Problem("torn_line", f"{path}: the last line is cut off (the writer was stopped in it)"))
    return segment


@dataclass(frozen=True)
class _Arrays:
    n: int
    columns: dict[str, NDArray[np.float64]]


def _decode(text: bytes) -> Any:
    """A line's struct; of a large block of steps its arrays."""
    if len(text) < BULK_BYTES:
        return _decoder.decode(text)
    line = _bulk_decoder.decode(text)
    return _Arrays(line.n, line.arrays()) if isinstance(line, BulkBlock) else line


def _read_header(path: str, text: bytes, is_whole: bool) -> Header:
    try:
        fields = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        if not is_whole and (not text or text.startswith(b"{")) and SEGMENT.match(Files.name(path)):
            raise EffprofError(
                f"{path}: the log is cut inside its first line, nothing in it can be read",
                "the process was stopped as it started; remove this file to read the rest of the run",
            ) from None
        raise EffprofError(f"{path}: not an effprof log", "give a run directory") from None
    if not isinstance(fields, dict):
        raise EffprofError(f"{path}: not an effprof log", "give a run directory")
    check_schema(path, fields.get("schema", ""), LOG_SCHEMA)
    try:
        return msgspec.convert(fields, type=Header)
    except msgspec.ValidationError as error:
        raise EffprofError(f"{path}: the log's first line is not a header ({error})", "give a run directory") from None


def _refuse_non_finite(path: str, number: int, text: bytes) -> None:
    # effprof writes null for what is not finite. Python's json takes NaN, Infinity and 1e999, strict JSON does not:
    # what only the former reads holds such a value, put there by another tool or a hand.
    try:
        json.loads(text)
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise bad_time(f"{path}, line {number}: a value that is not finite") from None
    except ValueError:
        return


def _type_of(text: bytes) -> str | None:
    try:
        fields = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
    kind = fields.get("type") if isinstance(fields, dict) else None
    return kind if isinstance(kind, str) else None


def build_rank(segments: list[SegmentLines], path: str) -> RankLog:
    """Join a rank's segments and check that every time in them is a finite, non-negative number."""
    lines = [line for segment in segments for line in segment.lines]
    steps = Joiner(path)
    for segment in segments:
        steps.extend(segment.steps)
    rank = RankLog(
        header=segments[0].header,
        columns=steps.join(),
        spans=[line for line in lines if isinstance(line, Span)],
        memory=[line for line in lines if isinstance(line, Memory)],
        experts=[line for line in lines if isinstance(line, Experts)],
        events=[line for line in lines if isinstance(line, Event)],
        end=next((line for line in reversed(lines) if isinstance(line, End)), None),
        last_ns=segments[0].header.monotonic_ns,
        skipped_lines=sum(segment.skipped for segment in segments),
        torn=any(segment.torn for segment in segments),
        kernels=[line for line in lines if isinstance(line, Kernels)],
    )
    for span in rank.spans:
        if span.start_ns < 0 or span.end_ns < span.start_ns:
            raise bad_time(f"{path}: span {span.name} ends before it starts or has a negative time")
    rank.last_ns = max(_times(rank))
    return rank


def _times(rank: RankLog) -> Iterable[int]:
    yield rank.header.monotonic_ns
    if rank.steps:
        yield int(rank.columns["end_ns"].max())
    for span in rank.spans:
        yield span.end_ns
    yield from (line.monotonic_ns for line in rank.memory)
    yield from (line.monotonic_ns for line in rank.events)
    if rank.end:
        yield rank.end.monotonic_ns


def build_node(segments: list[SegmentLines]) -> NodeLog:
    """Join a node's segments."""
    lines = [line for segment in segments for line in segment.lines]
    return NodeLog(
        header=segments[0].header,
        probes=[line for line in lines if isinstance(line, Probe)],
        samples=[line for line in lines if isinstance(line, Telemetry)],
        events=[line for line in lines if isinstance(line, Event)],
        skipped_lines=sum(segment.skipped for segment in segments),
        torn=any(segment.torn for segment in segments),
    )
