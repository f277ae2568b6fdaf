"""The writer thread: twice a second it takes finished steps off the ring and appends them to the rank's log."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns as now
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effprof.measure.clock import (
    COUNTER_BIT,
    COUNTER_COLUMNS,
    END,
    KNOWN,
    MICRO_BATCHES,
    PHASE_COLUMNS,
    ROW,
    SEQUENCE,
    STEP,
    SWITCHES,
    PhaseClock,
)
from effprof.runlog.schema import STEP_PHASES, Event, Line, Steps
from effprof.runlog.writer import RankWriter

PERIOD_S = 0.5
# Rows whose device counts or device times are still on their way are kept back this many visits, then written
# without them: at most a second of steps is ever only in memory.
MAX_HOLD_VISITS = 1
# Visits between two readings of allocator and process memory: about one a second.
_VISITS_PER_SAMPLE = 2

STEP_COLUMNS = tuple(f"{name}_ns" for name in STEP_PHASES)

Late = Sequence[tuple[int, Mapping[str, float]]]  # step sequence, column → value
LateColumns = Callable[[], Late]


class Recorder:
    """Owns the rank's log and the thread that writes it.

    Args:
        writer: the open log.
        clock: whose ring is drained.
        switch_ns: cost of one phase switch; booked from `other` to `effprof`.
        late: functions that return (step sequence, column → value) for values that arrive after the step.
        each_second: called about once a second in the writer's thread; returns lines to write.
        on_problem: told once, in words, when writing has failed for good.
    """

    def __init__(
        self,
        writer: RankWriter,
        clock: PhaseClock,
        *,
        switch_ns: float = 0.0,
        late: tuple[LateColumns, ...] = (),
        each_second: Callable[[], list[Line]] | None = None,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self.zero_columns: tuple[str, ...] = ()  # late columns whose absence means 0
        self._writer = writer
        self._clock = clock
        self._switch_ns = switch_ns
        self._late = late
        self._each_second = each_second
        self._on_problem = on_problem
        self._rows = np.empty((0, ROW), np.int64)  # finished steps that wait for late values
        self._visits = 0
        self._held = 0
        self._arrived: dict[int, dict[str, float]] = {}
        self._expected: deque[int] = deque()  # filled by the training thread
        self._outstanding: dict[int, int] = {}  # kept by the writer's: step sequence → values on their way
        self._lines: deque[Line] = deque()
        self._dropped = 0
        self._failed = False
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._sums: dict[str, float | None] = {}
        self._sum_step_ns = 0
        self._sums_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="effprof-writer", daemon=True)
        self._thread.start()

    def add(self, line: Line) -> None:
        """Queue a line for the next visit."""
        self._lines.append(line)

    def add_event(self, name: str, message: str = "", **data: Any) -> None:
        """Queue an event that happened now."""
        self.add(Event(name=name, monotonic_ns=now(), message=message, data=data))

    def expect(self, sequence: int) -> None:
        """One more set of values of step `sequence` will arrive late; hold its row for them for a moment."""
        self._expected.append(sequence)

    def flush(self, hold: bool = False) -> None:
        """Write what there is now. With `hold`, rows that wait for late values may stay for one more visit."""
        with self._lock:
            self._visit(hold)

    def close(self, last: Callable[[], list[Line]]) -> None:
        """Stop the thread, write everything and what `last` gives then, and close the log."""
        self._wake.set()
        self._thread.join(timeout=10)
        with self._lock:
            closing = last()
            self._visit(hold=False)
            self._write(closing)
            with contextlib.suppress(OSError):
                self._writer.close()

    @property
    def dropped(self) -> int:
        """Steps lost because the writer did not come by in time."""
        return self._dropped

    def _run(self) -> None:
        while not self._wake.wait(PERIOD_S):
            self.flush(hold=True)

    def _visit(self, hold: bool) -> None:
        self._visits += 1
        try:
            lines: list[Line] = []
            if self._each_second is not None and self._visits % _VISITS_PER_SAMPLE == 0:
                lines += self._each_second()
            lines += self._take_steps(hold)
            while self._lines:
                lines.append(self._lines.popleft())
            self._write(lines)
        except Exception as error:  # nothing that goes wrong here may reach the training loop
            self._fail(error)

    def _write(self, lines: list[Line]) -> None:
        if self._failed:
            return
        try:
            self._writer.write(lines)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._failed and self._on_problem is not None:
            self._on_problem(f"the log can't be written any more ({type(error).__name__}: {error})")
        self._failed = True

    def _take_steps(self, hold: bool) -> list[Line]:
        # rows first: what was kept for a step before it ended is then there to be taken
        rows, lost = self._clock.take_rows()
        self._take_late_values()
        self._dropped += lost
        rows = np.concatenate((self._rows, rows))
        ready = self._ready_rows(rows) if hold else len(rows)
        rows, self._rows = rows[:ready], rows[ready:]
        if not len(rows):
            return []
        end = int(rows[-1, SEQUENCE]) + 1
        # half a step's tokens would be a wrong number: what has not all arrived is left out
        complete = {sequence: row for sequence, row in self._arrived.items() if sequence not in self._outstanding}
        block = block_of(rows, self._switch_ns, complete, self.zero_columns)
        self._add_to_sums(block)
        self._arrived = {sequence: row for sequence, row in self._arrived.items() if sequence >= end}
        self._outstanding = {sequence: n for sequence, n in self._outstanding.items() if sequence >= end}
        return [block]

    def take_sums(self) -> tuple[dict[str, float], int]:
        """Like `PhaseClock.take_sums`, over the steps written since the last call: late values are in these."""
        with self._sums_lock:
            taken, self._sums, self._sum_step_ns = (self._sums, self._sum_step_ns), {}, 0
        return {name: value for name, value in taken[0].items() if value is not None}, taken[1]

    def _add_to_sums(self, block: Steps) -> None:
        with self._sums_lock:
            for name in COUNTER_COLUMNS:
                values = block.columns.get(name, [None])
                before = self._sums.get(name, 0.0)
                is_known = before is not None and None not in values
                self._sums[name] = (before or 0.0) + sum(v for v in values if v is not None) if is_known else None
            self._sum_step_ns += sum(int(v or 0) for name in STEP_COLUMNS for v in block.columns.get(name, ()))

    def _take_late_values(self) -> None:
        # values first, expectations second: a value that arrives was always announced before it
        arrivals = [arrival for source in self._late for arrival in source()]
        while self._expected:
            sequence = self._expected.popleft()
            self._outstanding[sequence] = self._outstanding.get(sequence, 0) + 1
        for sequence, columns in arrivals:
            row = self._arrived.setdefault(sequence, {})
            for name, value in columns.items():
                row[name] = row.get(name, 0) + value
            left = self._outstanding.get(sequence, 0) - 1
            if left > 0:
                self._outstanding[sequence] = left
            else:
                self._outstanding.pop(sequence, None)

    def _ready_rows(self, rows: NDArray[np.int64]) -> int:
        """How many of the rows wait for nothing, or have waited long enough."""
        waiting = np.isin(rows[:, SEQUENCE], list(self._outstanding))
        if not waiting.any() or self._held >= MAX_HOLD_VISITS:
            self._held = 0
            return len(rows)
        self._held += 1
        return int(np.argmax(waiting))


def block_of(
    rows: NDArray[np.int64],
    switch_ns: float,
    late: Mapping[int, Mapping[str, float]],
    zero_columns: Sequence[str] = (),
) -> Steps:
    """Rows as a column block: only phases that occurred, counters null where they are not known.

    Args:
        rows: (n, ROW) finished steps.
        switch_ns: nanoseconds a phase switch costs; moved from `other` to `effprof`, so that the sum stays.
        late: step sequence → column → value that arrived after the step, device columns and device counts.
        zero_columns: late columns that are there for every step, 0 where nothing arrived.
    """
    rows = rows.copy()
    other, own = PHASE_COLUMNS["other_ns"], PHASE_COLUMNS["effprof_ns"]
    moved = np.minimum(np.round(rows[:, SWITCHES] * switch_ns).astype(np.int64), rows[:, other])
    rows[:, other] -= moved
    rows[:, own] += moved
    columns: dict[str, list[Any]] = {
        "step": rows[:, STEP].tolist(),
        "end_ns": rows[:, END].tolist(),
        "micro_batches": rows[:, MICRO_BATCHES].tolist(),
    }
    for name, slot in PHASE_COLUMNS.items():
        if rows[:, slot].any():
            columns[name] = rows[:, slot].tolist()
    for name, slot in COUNTER_COLUMNS.items():
        known = (rows[:, KNOWN] & COUNTER_BIT[name]) != 0
        if known.any():
            columns[name] = [
                value if is_known else None for value, is_known in zip(rows[:, slot].tolist(), known, strict=True)
            ]
    sequences = rows[:, SEQUENCE].tolist()
    for name in dict.fromkeys([*zero_columns, *(name for sequence in sequences for name in late.get(sequence, ()))]):
        absent = 0 if name in zero_columns else None
        arrived = [late.get(sequence, {}).get(name, absent) for sequence in sequences]
        present = columns.get(name, [None] * len(arrived))
        columns[name] = [new if old is None else old for old, new in zip(present, arrived, strict=True)]
    return Steps(n=len(rows), columns=columns)
