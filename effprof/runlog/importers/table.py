"""Formats that are a table: which line is a step, and which piece of it goes into which column."""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.layout import Layouts, Span
from effprof.runlog.importers.pattern import Pattern
from effprof.runlog.importers.text import NUMBER, read_lines, to_number, to_rank, to_time

Record = dict[str, float]
# Facts are looked for in lines up to this length: argument dumps hold them, serialised models do not.
_MAX_FACT_LINE = 20_000
# `.*` of a step pattern: bounded, else a long line that begins like a step many times over costs its length squared.
_ANYTHING = ".{0,1500}"
# What any log may hold: the table of nvidia-smi, which cuts long names off ("Tesla V100-SXM2...").
_COMMON_FACTS = {
    "device": r"\|\s+\d+\s+((?:NVIDIA|Tesla|GeForce|Quadro) [A-Z].*?)(?:\.\.\.)?\s+(?:On|Off|N/A)\s+\|",
    "device_memory_mib": r"\|.*MiB /\s*(\d+)MiB \|",
}
# Tools print their settings before they train; to look for them in all of a long log would double its reading time.
_FACT_RECORDS = 100
# Ranks without a label may print a step this many records after the first did.
_LATE_RECORDS = 2


@dataclass(frozen=True)
class Column:
    """Where a column's value stands in a line: `pattern` with `{n}` for the number; times `scale`."""

    pattern: str
    scale: float = 1.0

    @cached_property
    def place(self) -> Pattern:
        return Pattern(self.pattern.replace("{n}", f"({NUMBER})"))


@dataclass(frozen=True)
class LineFormat:
    """One tool's way of printing steps.

    Args:
        name: as `source.format` shows it.
        framework: the tool.
        step: pattern of a line that is a step (or begins one, for `is_block`); a group `step` holds its number, or a
            group `iteration` where that one did not take part; without both, steps are counted.
        columns: column → where it stands; several places are tried in order.
        facts: fact → pattern with one group, looked for in every line; the first that is found holds.
        is_block: the lines after a step's first one belong to it.
        per_rank: columns that every rank prints for itself: summed over ranks where tokens, else averaged.
        averages: columns that are running averages.
        has_time: whether step lines carry a date and time worth keeping.
        weight: raises or lowers the score against formats that print similar lines.
        finish: mends the log where a table is not enough.
    """

    name: str
    framework: str
    step: str
    columns: Mapping[str, Column | tuple[Column, ...]]
    facts: Mapping[str, str] = field(default_factory=dict)
    is_block: bool = False
    per_rank: bool = False
    averages: frozenset[str] = frozenset()
    has_time: bool = True
    weight: float = 1.0
    finish: Callable[[ForeignLog], None] | None = None

    @cached_property
    def _step(self) -> Pattern:
        return Pattern(self.step.replace("{n}", NUMBER).replace(".*", _ANYTHING))

    @cached_property
    def _columns(self) -> list[tuple[str, tuple[Column, ...]]]:
        return [(name, place if isinstance(place, tuple) else (place,)) for name, place in self.columns.items()]

    @cached_property
    def _facts(self) -> dict[str, re.Pattern[str]]:
        return {name: re.compile(pattern) for name, pattern in {**_COMMON_FACTS, **self.facts}.items()}

    def score(self, head: Head) -> float:
        """Number of step lines, times `weight`."""
        lines = zip(head.lines, head.lowered, strict=True)
        return self.weight * sum(self._step.search(line, lowered) is not None for line, lowered in lines)

    def read(self, path: str) -> ForeignLog:
        """All records of a log, in the order of their steps."""
        records, facts = _Records(self.per_rank), dict[str, Any]()
        missing, layouts = dict(self._facts), Layouts()
        current: Record | None = None
        rank: int | None = None
        for line in read_lines(path):
            if missing and len(line) < _MAX_FACT_LINE and records.count < _FACT_RECORDS:
                _find_facts(line, missing, facts)
            lowered = line.lower()
            begun = self._begin(line, lowered, layouts)
            if begun is None:
                if self.is_block and current is not None:
                    current |= self._values(line, lowered, {})
                continue
            if current is not None:  # only now is a block known to be complete
                records.add(current, rank)
            begun.setdefault("step", float(records.count + 1))
            current, rank = begun if not math.isnan(begun["step"]) else None, to_rank(line)
        if current is not None:
            records.add(current, rank)
        return self._log(path, records, facts)

    def _begin(self, line: str, lowered: str, layouts: Layouts) -> Record | None:
        """The record of a step's line, with the step where the line says it (NaN: unreadable); None of another line."""
        if self._step.earliest(lowered) < 0 and len(lowered) == len(line):
            return None
        record = layouts.read(line)
        if record is None:
            found = self._step.search(line, lowered)
            if found is None:
                return None
            places: dict[str, tuple[Span, float]] = {}
            record = self._values(line, lowered, places)
            groups = found.groupdict()
            for name in ("step", "iteration"):
                if groups.get(name):
                    record["step"] = to_number(groups[name])
                    places["step"] = found.span(name), 1.0
                    break
            layouts.learn(line, places)
        time = to_time(line) if self.has_time else None
        if time is not None:
            record["time_s"] = time
        return record

    def _log(self, path: str, records: _Records, facts: dict[str, Any]) -> ForeignLog:
        if not records.count:
            raise EffprofError(f"{path}: no step of {self.framework} in it", "give the part of the log that trains")
        log = ForeignLog(
            format=self.name,
            framework=self.framework,
            path=path,
            columns=records.to_columns(),
            facts=facts,
            averages=self.averages,
            repeated=records.repeated,
        )
        if self.per_rank and records.ranks and "world_size" not in facts:
            facts["world_size"] = len(records.ranks)
        if self.finish is not None:
            self.finish(log)
        return log

    def _values(self, line: str, lowered: str, places: dict[str, tuple[Span, float]]) -> Record:
        """Columns of a line; where their numbers stand, and their scales, go into `places`."""
        values = {}
        for name, columns in self._columns:
            for column in columns:
                found = column.place.search(line, lowered)
                if found is not None:
                    values[name] = to_number(found.group(1)) * column.scale
                    places[name] = found.span(1), column.scale
                    break
        return values


class _Records:
    """Records in the order of their steps: of ranks that print the same step, one; of a restart's steps, the later.

    Values lie in arrays, eight bytes each, so that a log of millions of steps fits.
    """

    def __init__(self, per_rank: bool) -> None:
        self._per_rank = per_rank
        self._steps = array("d")
        self._prints = array("d")
        self._columns: dict[str, array[float]] = {}
        self._last_of_rank: dict[int, float] = {}
        self._copies = 0
        self.repeated = 0
        self.ranks: set[int] = set()

    @property
    def count(self) -> int:
        return len(self._steps)

    def add(self, record: Record, rank: int | None) -> None:
        step = record["step"]
        if self._steps and step <= self._steps[-1]:
            place = bisect_left(self._steps, step)
            if self._is_copy(place, step, rank):
                self._merge(place, step, record)
            else:
                self._drop_from(place)
                self._append(record)
        else:
            self._append(record)
        if rank is not None:
            self.ranks.add(rank)
            self._last_of_rank[rank] = step

    def to_columns(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        return {name: np.array(values, dtype=np.float64) for name, values in self._columns.items()}

    def _is_copy(self, place: int, step: float, rank: int | None) -> bool:
        """Whether another rank prints a step again, maybe late; else the job went back to an earlier step."""
        if step == self._steps[-1]:
            return True
        if rank is not None:
            return step > self._last_of_rank.get(rank, -math.inf)
        return 2 * self._copies >= self.count and self.count - 1 - place <= _LATE_RECORDS

    def _append(self, record: Record) -> None:
        rows = self.count
        if not record.keys() <= self._columns.keys():
            for name in record.keys() - self._columns.keys():
                self._columns[name] = array("d", [math.nan]) * rows
        for name, values in self._columns.items():
            values.append(record.get(name, math.nan))
        self._steps.append(record["step"])
        self._prints.append(1)

    def _drop_from(self, place: int) -> None:
        self.repeated += self.count - place
        for values in (self._steps, self._prints, *self._columns.values()):
            del values[place:]
        self._last_of_rank.clear()

    def _merge(self, place: int, step: float, record: Record) -> None:
        """Add what a rank printed of its own: tokens add up, the slowest makes the time, rates are means."""
        self._copies += 1
        if not self._per_rank or self._steps[place] != step:
            return
        self._prints[place] += 1
        for name, value in record.items():
            if name in ("step", "loss") or name not in self._columns:
                continue
            values, so_far = self._columns[name], self._columns[name][place]
            if math.isnan(so_far) or math.isnan(value):
                values[place] = value if math.isnan(so_far) else so_far
            elif name in ("tokens", "samples"):
                values[place] = so_far + value
            elif name.endswith("_s") and "per_s" not in name:
                values[place] = max(so_far, value)
            else:
                values[place] = so_far + (value - so_far) / self._prints[place]


def _find_facts(line: str, missing: dict[str, re.Pattern[str]], facts: dict[str, Any]) -> None:
    for name, pattern in list(missing.items()):
        found = pattern.search(line)
        if found is not None:
            text = found.group(1)
            number = to_number(text)
            facts[name] = text if math.isnan(number) else int(number) if number.is_integer() else number
            del missing[name]


def to_columns(records: Iterable[Record]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Records as columns, NaN where a record lacks a value."""
    rows = list(records)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, math.nan) for row in rows], dtype=np.float64) for name in names}
