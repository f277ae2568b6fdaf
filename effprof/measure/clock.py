"""The hot path: one clock that is always in exactly one phase, so that a step's phases sum to its wall time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from operator import add
from time import perf_counter_ns as now

import numpy as np
from numpy.typing import NDArray

from effprof.runlog.schema import COUNTERS, PHASES

(
    INPUT_WAIT,
    HOST_TO_DEVICE,
    FORWARD,
    BACKWARD,
    OPTIMIZER,
    GENERATION,
    OTHER,
    STARTUP,
    COMPILE,
    EVALUATION,
    CHECKPOINT,
    LOGGING,
    EFFPROF,
    UNATTRIBUTED,
) = range(len(PHASES))
PHASE_NUMBER = {name: number for number, name in enumerate(PHASES)}

# A row: one finished optimizer step, with its phases and counters.
STEP, END, MICRO_BATCHES, SWITCHES, KNOWN, SEQUENCE = range(6)
_PHASE_0 = 6
_COUNTER_0 = _PHASE_0 + len(PHASES)
ROW = _COUNTER_0 + len(COUNTERS)
# Steps that may wait for the writer, which comes by every 0.5 s; beyond, the oldest are given up.
CAPACITY = 32768

PHASE_COLUMNS = {f"{name}_ns": _PHASE_0 + number for number, name in enumerate(PHASES)}
COUNTER_COLUMNS = {name: _COUNTER_0 + number for number, name in enumerate(COUNTERS)}
COUNTER_BIT = {name: 1 << number for number, name in enumerate(COUNTERS)}
_COUNTER_SLOT = {name: number for number, name in enumerate(COUNTERS)}

# A phase change is one integer: its time in nanoseconds, shifted, and the phase that begins. `END_OF_STEP` is the
# phase `other` beginning with a new step.
PHASE_BITS = 4
PHASE_MASK = (1 << PHASE_BITS) - 1
END_OF_STEP = PHASE_MASK

Rows = NDArray[np.int64]
_NO_ROWS: Rows = np.empty((0, ROW), np.int64)
# Up to so many steps at once are added up without arrays.
_FEW = 4
# step, micro-batches, micro-batches counted, their counters, FLOPs given by the user
_Step = tuple[int, int, int, "dict[str, int] | None", int]


class PhaseClock:
    """Is always in exactly one phase, and hands over a row per optimizer step.

    What runs between the user's own lines only appends an integer to a queue (`mark`): on a cold cache that costs
    less than half of a store into an array, not to speak of adding up. `collect` does the adding, later and in bulk.
    Before the first step and after the last one the time goes to `on_span` instead of to a step's row.

    Args:
        started_ns: monotonic time at which the clock takes over.
        on_span: called with (phase number, start_ns, end_ns) for each stretch outside steps.
    """

    def __init__(self, started_ns: int, on_span: Callable[[int, int, int], None]) -> None:
        self.head = 0  # steps finished, ever
        self.in_steps = False
        self.steps_began_ns = 0  # when the first step of this process began
        self.mark: Callable[[int], None] = self._mark_outside
        self._on_span = on_span
        self.listener: Callable[[int], None] | None = None  # set by `listen`
        self._outside_since = started_ns
        self._outside_phase = STARTUP
        self._changes: deque[int] = deque()
        self._steps: deque[_Step] = deque()
        self._counts: dict[str, int] | None = None
        self._counted = 0
        self._given_flops = 0
        self.micro_batches = 0  # done of the step that runs; counted up by whoever runs them
        # what `collect` has taken off the queues; more than one thread may ask for it
        self._lock = threading.Lock()
        self._open: list[int] = []  # changes since the last collected step's end, that end included
        self._collected = 0
        self._ready: list[Rows | list[list[int]]] = []
        self._lost = 0
        self._sums: list[float] = [0] * len(COUNTERS)
        self._sums_known = -1
        self._sum_step_ns = 0

    @property
    def phase(self) -> int:
        """Number of the phase that the clock is in."""
        if not self.in_steps:
            return self._outside_phase
        return _phase_of(self._changes[-1])

    @property
    def step_sequence(self) -> int:
        """Number of the step that is being measured, counted from 0 in this process."""
        return self.head

    def switch(self, phase: int) -> None:
        """Enter `phase`. The hot path says `clock.mark(now() << PHASE_BITS | phase)` itself and spares this call."""
        self.mark(now() << PHASE_BITS | phase)

    def entering(self, phase: int, since: Iterable[int]) -> Callable[[], None]:
        """A function that enters `phase` where the clock is in one of the phases `since`, in a single call."""
        changes = self._changes
        left = frozenset(since)
        left_in_steps = left | {END_OF_STEP} if OTHER in left else left

        def enter() -> None:
            if changes[-1] & PHASE_MASK in left_in_steps if self.in_steps else self._outside_phase in left:
                self.mark(now() << PHASE_BITS | phase)

        return enter

    def begin_steps(self) -> None:
        """From here on time belongs to steps."""
        if self.in_steps:
            return
        self._mark_outside(now() << PHASE_BITS | OTHER)
        self.steps_began_ns = self.steps_began_ns or self._outside_since
        self._changes.append(self._outside_since << PHASE_BITS | OTHER)
        self.in_steps = True
        self.listen(self.listener)

    def listen(self, on_switch: Callable[[int], None] | None) -> None:
        """Call `on_switch` with each phase that begins from now on, in place of who was called so far."""
        self.listener = on_switch
        if self.in_steps:
            self.mark = self._changes.append if on_switch is None else self._mark_and_tell

    def _mark_and_tell(self, change: int) -> None:
        self._changes.append(change)
        if self.listener is not None:
            self.listener(_phase_of(change))

    def _mark_outside(self, change: int) -> None:
        time = change >> PHASE_BITS
        if time > self._outside_since:
            self._on_span(self._outside_phase, self._outside_since, time)
        self._outside_since = time
        self._outside_phase = change & PHASE_MASK

    def add_counts(self, counts: dict[str, int]) -> None:
        """Add one micro-batch's counters to the step; one that is missing here is missing for the whole step."""
        known = self._counts
        self._counted += 1
        # a step of one micro-batch keeps the very mapping, which a counter by shape hands out again and again
        self._counts = (
            counts if known is None else {name: known[name] + counts[name] for name in known if name in counts}
        )

    def add_given_flops(self, flops: int) -> None:
        """This step's share of FLOPs that the user gave."""
        self._given_flops += flops

    def has_spent(self, phase: int) -> bool:
        """Whether the step that is being measured has been in `phase`."""
        return any(seen == phase for seen, _, _ in self._unfinished())

    def end_step(self, step: int) -> None:
        """Close the step: the next one begins.

        Args:
            step: the framework's count of optimizer steps after this one.
        """
        self.mark(now() << PHASE_BITS | END_OF_STEP)
        self._steps.append((step, self.micro_batches, self._counted, self._counts, self._given_flops))
        self._counts = None
        self._counted = self._given_flops = self.micro_batches = 0
        self.head += 1
        if len(self._steps) > CAPACITY:
            self._give_up()

    def take_rows(self) -> tuple[Rows, int]:
        """(n, ROW) rows of the steps finished since the last call, and how many were given up."""
        with self._lock:
            self._collect()
            ready, self._ready = self._ready, []
            lost, self._lost = self._lost, 0
        return np.concatenate([np.asarray(part, np.int64) for part in ready]) if ready else _NO_ROWS, lost

    def take_sums(self) -> tuple[dict[str, float], int]:
        """Counters that every step since the last call knew, summed, and those steps' time in nanoseconds."""
        with self._lock:
            self._collect()
            known, sums, step_ns = self._sums_known, self._sums, self._sum_step_ns
            self._sums, self._sums_known, self._sum_step_ns = [0] * len(COUNTERS), -1, 0
        if not step_ns:
            return {}, 0
        return {name: sums[slot] for name, slot in _COUNTER_SLOT.items() if known & COUNTER_BIT[name]}, step_ns

    def end_steps(self) -> None:
        """No more steps: what has passed since the last one becomes spans."""
        self.switch(OTHER)
        if not self.in_steps:
            return
        unfinished = self._unfinished()
        self._outside_since, self._outside_phase = self._changes[-1] >> PHASE_BITS, OTHER
        self.in_steps = False
        self.mark = self._mark_outside
        for phase, start_ns, end_ns in unfinished:
            self._on_span(phase, start_ns, end_ns)

    def _collect(self) -> None:
        """Take what is on the queues and add up the steps that are finished. The lock is held."""
        # steps first: the change that ended each of them is then on the other queue for certain
        steps = [self._steps.popleft() for _ in range(len(self._steps))]
        # the last change stays: it tells the phase that the clock is in
        changes = [self._changes.popleft() for _ in range(len(self._changes) - 1)]
        held = self._open + changes
        if not steps:
            self._open = held
            return
        add_up = _add_up_few if len(steps) <= _FEW else _add_up
        rows, open_from = add_up([*held, self._changes[0]], len(steps))
        _fill(rows, steps, self._collected)
        self._collected += len(steps)
        # the end of the last of them begins the next one; it may be the change that has stayed on the queue
        self._open = held[open_from:]
        self._ready.append(rows)
        for row in rows if isinstance(rows, list) else [_total(rows)]:
            self._sums = list(map(add, self._sums, row[_COUNTER_0:]))
            self._sums_known &= int(row[KNOWN])
            self._sum_step_ns += int(sum(row[_PHASE_0 : _PHASE_0 + OTHER + 1]))

    def _give_up(self) -> None:
        """The writer is stuck: forget the steps that wait, the phases before the last change, and say how many."""
        with self._lock:
            self._lost += len(self._steps)
            self._collected += len(self._steps)
            self._steps.clear()
            while len(self._changes) > 1:
                self._changes.popleft()
            self._open = []

    def _unfinished(self) -> list[tuple[int, int, int]]:
        """(phase, start_ns, end_ns) of the stretches since the last step's end that are over."""
        with self._lock:
            self._collect()
            changes = [*self._open, *self._changes]
        return [
            (
                OTHER if begun & PHASE_MASK == END_OF_STEP else begun & PHASE_MASK,
                begun >> PHASE_BITS,
                ended >> PHASE_BITS,
            )
            for begun, ended in pairwise(changes)
            if ended >> PHASE_BITS > begun >> PHASE_BITS
        ]


def _phase_of(change: int) -> int:
    phase = change & PHASE_MASK
    return OTHER if phase == END_OF_STEP else phase


def _add_up(held: list[int], steps: int) -> tuple[Rows, int]:
    """(steps, ROW) rows with nanoseconds per phase, and the number of the change that ends the last of them.

    The changes begin with the one that the first step began with and reach beyond the last step's end.
    """
    changes = np.array(held, np.int64)
    phases = changes & PHASE_MASK
    ends = np.flatnonzero(phases[1:] == END_OF_STEP)[:steps] + 1
    bounds = np.concatenate(([0], ends))
    last = int(ends[-1])
    phases = np.where(phases == END_OF_STEP, OTHER, phases)[:last]
    row = np.searchsorted(ends, np.arange(last), side="right")
    spent = np.bincount(
        row * len(PHASES) + phases,
        weights=np.diff(changes[: last + 1] >> PHASE_BITS),
        minlength=steps * len(PHASES),
    )
    rows = np.zeros((steps, ROW), np.int64)
    rows[:, _PHASE_0:_COUNTER_0] = spent.reshape(steps, len(PHASES))
    rows[:, END] = changes[ends] >> PHASE_BITS
    rows[:, SWITCHES] = np.diff(bounds)
    return rows, last


def _add_up_few(held: list[int], steps: int) -> tuple[list[list[int]], int]:
    """The same as lists. Arrays of a few dozen numbers cost more to make than to loop over."""
    rows: list[list[int]] = []
    row, switches = [0] * ROW, 0
    phase, since = _phase_of(held[0]), held[0] >> PHASE_BITS
    for number in range(1, len(held)):
        change = held[number]
        time = change >> PHASE_BITS
        row[_PHASE_0 + phase] += time - since
        since = time
        switches += 1
        phase = change & PHASE_MASK
        if phase == END_OF_STEP:
            row[END], row[SWITCHES] = time, switches
            rows.append(row)
            if len(rows) == steps:
                return rows, number
            row, switches, phase = [0] * ROW, 0, OTHER
    raise ValueError(f"{len(rows)} ends of {steps} steps")


def _total(rows: Rows) -> list[float]:
    """Sum of the rows, with what all of them know. FLOPs of many steps do not fit into 64 bits."""
    total: list[float] = rows.sum(axis=0, dtype=np.float64).tolist()
    total[KNOWN] = int(np.bitwise_and.reduce(rows[:, KNOWN]))
    return total


def _fill(rows: Rows | list[list[int]], steps: list[_Step], first: int) -> None:
    """Put the steps' counts into their rows; `first` is the sequence number of the first one."""
    for number, (row, (step, micro_batches, counted, counts, given)) in enumerate(zip(rows, steps, strict=True)):
        row[STEP], row[MICRO_BATCHES], row[SEQUENCE] = step, micro_batches, first + number
        known = 0
        # a micro-batch that was not counted makes the step's counters unknown, not smaller
        if counts is not None and counted == micro_batches:
            for name, value in counts.items():
                row[COUNTER_COLUMNS[name]] = value
                known |= COUNTER_BIT[name]
        if given:
            row[COUNTER_COLUMNS["flops"]] = given
            known |= COUNTER_BIT["flops"]
        row[KNOWN] = known


def measure_switch_ns(repeats: int = 2000) -> float:
    """What one `switch` costs on this machine, in nanoseconds: the part of effprof's own time not bracketed."""
    clock = PhaseClock(now(), lambda *_: None)
    clock.begin_steps()
    started = now()
    for _ in range(repeats):
        clock.switch(FORWARD)
    return (now() - started) / repeats
