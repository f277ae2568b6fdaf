"""Formats that are a table: which line is a step, and which piece of it goes into which column."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.text import NUMBER, read_lines, to_number, to_rank, to_time

Record = dict[str, float]
# Facts are looked for in lines up to this length: argument dumps hold them, serialised models do not.
_MAX_FACT_LINE = 20_000


@dataclass(frozen=True)
class Column:
    """Where a column's value stands in a line: `pattern` with `{n}` for the number; times `scale`."""

    pattern: str
    scale: float = 1.0

    @cached_property
    def expression(self) -> re.Pattern[str]:
        return re.compile(self.pattern.replace("{n}", f"({NUMBER})"), re.IGNORECASE)


@dataclass(frozen=True)
class LineFormat:
    """One tool's way of printing steps.

    Args:
        name: as `source.format` shows it.
        framework: the tool.
        step: pattern of a line that is a step (or begins one, for `is_block`); a group `step` holds its number.
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
    def _step(self) -> re.Pattern[str]:
        return re.compile(self.step.replace("{n}", NUMBER), re.IGNORECASE)

    @cached_property
    def _columns(self) -> list[tuple[str, tuple[Column, ...]]]:
        return [(name, place if isinstance(place, tuple) else (place,)) for name, place in self.columns.items()]

    @cached_property
    def _facts(self) -> dict[str, re.Pattern[str]]:
        return {name: re.compile(pattern) for name, pattern in self.facts.items()}

    def score(self, head: Head) -> float:
        """Number of step lines, times `weight`."""
        return self.weight * sum(self._step.search(line) is not None for line in head.lines)

    def read(self, path: str) -> ForeignLog:
        """All records of a log, in the order of their steps."""
        records, facts = _Records(self.per_rank), dict[str, Any]()
        missing = dict(self._facts)
        current: Record | None = None
        for line in read_lines(path):
            if missing and len(line) < _MAX_FACT_LINE:
                _find_facts(line, missing, facts)
            found = self._step.search(line)
            if found is not None:
                current = self._values(line)
                printed = found.groupdict().get("step")
                step = to_number(printed) if printed is not None else float(records.count + 1)
                if math.isnan(step):
                    continue
                current["step"] = step
                time = to_time(line) if self.has_time else None
                if time is not None:
                    current["time_s"] = time
                records.add(current, to_rank(line))
            elif self.is_block and current is not None:
                current |= self._values(line)
        if not records.count:
            raise EffprofError(f"{path}: no step of {self.framework} in it", "give the part of the log that trains")
        log = ForeignLog(
            format=self.name,
            framework=self.framework,
            path=path,
            columns=to_columns(records.all()),
            facts=facts,
            averages=self.averages,
            repeated=records.repeated,
        )
        if self.per_rank and records.ranks and "world_size" not in facts:
            facts["world_size"] = len(records.ranks)
        if self.finish is not None:
            self.finish(log)
        return log

    def _values(self, line: str) -> Record:
        values = {}
        for name, places in self._columns:
            for place in places:
                found = place.expression.search(line)
                if found is not None:
                    values[name] = to_number(found.group(1)) * place.scale
                    break
        return values


class _Records:
    """Records by step: of ranks that print the same step, one; of a restart's repeated steps, the later."""

    def __init__(self, per_rank: bool) -> None:
        self._per_rank = per_rank
        self._records: dict[float, list[Record]] = {}
        self._last = -math.inf
        self.repeated = 0
        self.ranks: set[int] = set()

    @property
    def count(self) -> int:
        return len(self._records)

    def add(self, record: Record, rank: int | None) -> None:
        step = record["step"]
        if rank is not None:
            self.ranks.add(rank)
        if step in self._records and (step == self._last or self._is_late_rank(step)):
            self._records[step].append(record)
            return
        if step < self._last:
            later = [each for each in self._records if each >= step]
            self.repeated += len(later)
            for each in later:
                del self._records[each]
        self._records[step] = [record]
        self._last = step

    def _is_late_rank(self, step: float) -> bool:
        """Ranks that print a step apart may still do so when others are at the next one."""
        return self._per_rank and self._last - step <= 2

    def all(self) -> list[Record]:
        if not self._per_rank:
            return [ranks[0] for ranks in self._records.values()]
        return [_joined(ranks) for ranks in self._records.values()]


def _joined(ranks: list[Record]) -> Record:
    """One record of what every rank printed of its own: tokens add up, the slowest makes the time, rates are means."""
    joined = dict(ranks[0])
    for name in joined:
        values = [each[name] for each in ranks if name in each]
        if name in ("tokens", "samples"):
            joined[name] = sum(values)
        elif name.endswith("_s") and "per_s" not in name:
            joined[name] = max(values)
        elif name not in ("step", "loss"):
            joined[name] = sum(values) / len(values)
    return joined


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
