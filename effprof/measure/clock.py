"""The hot path: one clock that is always in exactly one phase, so that a step's phases sum to its wall time."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import pairwise
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

# A row of the ring: one finished optimizer step. `EVENT` is the number of the phase change that ended it; `read`
# replaces it by how many there were, and fills in the phases.
STEP, END, MICRO_BATCHES, EVENT, KNOWN, SEQUENCE = range(6)
SWITCHES = EVENT
_PHASE_0 = 6
_COUNTER_0 = _PHASE_0 + len(PHASES)
ROW = _COUNTER_0 + len(COUNTERS)
# Steps and phase changes held between two visits of the writer, 0.5 s apart.
CAPACITY = 8192
EVENTS = 1 << 17
_EVENT_MASK = EVENTS - 1
_PHASE_BITS = 4
_EVENT_MARGIN = 1024  # phase changes that may come while a reader reads

PHASE_COLUMNS = {f"{name}_ns": _PHASE_0 + number for number, name in enumerate(PHASES)}
COUNTER_COLUMNS = {name: _COUNTER_0 + number for number, name in enumerate(COUNTERS)}
COUNTER_BIT = {name: 1 << number for number, name in enumerate(COUNTERS)}
_COUNTER_SLOT = {name: number for number, name in enumerate(COUNTERS)}
_FLOPS_SLOT, _FLOPS_BIT = COUNTER_COLUMNS["flops"], COUNTER_BIT["flops"]
_EMPTY_ROW = array("q", bytes(8 * ROW))


class PhaseClock:
    """Is always in exactly one phase, and hands over a row per optimizer step.

    `switch` is what runs between the user's own lines: it stores the time and the phase that begins, and adds
    nothing up; `read` does that later, in the writer's thread. Before the first step and after the last one the time
    goes to `on_span` instead of to a step's row.

    Args:
        started_ns: monotonic time at which the clock takes over.
        on_span: called with (phase number, start_ns, end_ns) for each stretch outside steps.
    """

    def __init__(self, started_ns: int, on_span: Callable[[int, int, int], None]) -> None:
        self.phase = STARTUP
        self.head = 0  # rows finished, ever; the writer keeps its own tail
        self.in_steps = False
        self.switch: Callable[[int], None] = self._switch_outside
        self.on_device_switch: Callable[[int], None] | None = None  # set by `listen`
        self._on_span = on_span
        self._outside_since = started_ns
        self._rows = array("q", bytes(8 * ROW * CAPACITY))
        self._events = array("q", bytes(8 * EVENTS))
        self._event = 0  # phase changes since the first step began, ever
        self._base = 0  # of the row of the step that runs
        self._known = -1
        self._counted = 0
        self._given_flops = 0
        self._micro_batches = 0
        self._taken = 0

    @property
    def step_sequence(self) -> int:
        """Number of the step that is being measured, counted from 0 in this process."""
        return self.head

    def begin_steps(self) -> None:
        """From here on time belongs to steps."""
        if self.in_steps:
            return
        self._switch_outside(OTHER)
        self.in_steps = True
        self._events[0] = self._outside_since << _PHASE_BITS | OTHER
        self._event = 1
        self.listen(self.on_device_switch)

    def listen(self, on_switch: Callable[[int], None] | None) -> None:
        """Call `on_switch` with each phase that begins from now on, in place of who was called so far."""
        self.on_device_switch = on_switch
        if self.in_steps:
            self.switch = self._switch if on_switch is None else self._switch_with_device

    def _switch(self, phase: int) -> None:
        event = self._event
        self._events[event & _EVENT_MASK] = now() << _PHASE_BITS | phase
        self._event = event + 1
        self.phase = phase

    def _switch_with_device(self, phase: int) -> None:
        self._switch(phase)
        if self.on_device_switch is not None:
            self.on_device_switch(phase)

    def _switch_outside(self, phase: int) -> None:
        time = now()
        if time > self._outside_since:
            self._on_span(self.phase, self._outside_since, time)
        self._outside_since = time
        self.phase = phase

    def add_counts(self, counts: dict[str, int]) -> None:
        """Add one micro-batch's counters to the step; one that is missing here is missing for the whole step."""
        known = 0
        rows, base = self._rows, self._base + _COUNTER_0
        for name, value in counts.items():
            rows[base + _COUNTER_SLOT[name]] += value
            known |= COUNTER_BIT[name]
        self._known &= known
        self._counted += 1

    def add_given_flops(self, flops: int) -> None:
        """This step's share of FLOPs that the user gave."""
        self._given_flops += flops

    def has_spent(self, phase: int) -> bool:
        """Whether the step that is being measured has been in `phase`."""
        return any(seen == phase for seen, _, _ in self._unfinished())

    def end_micro_batch(self) -> None:
        """One more micro-batch of this step has been run."""
        self._micro_batches += 1

    def end_step(self, step: int) -> None:
        """Close the step: its row is complete and the next step begins.

        Args:
            step: the framework's count of optimizer steps after this one.
        """
        self.switch(OTHER)
        rows, base, head, event = self._rows, self._base, self.head, self._event - 1
        # a micro-batch that was not counted makes the step's counters unknown, not smaller
        known = self._known if self._counted and self._counted == self._micro_batches else 0
        if self._given_flops:
            rows[base + _FLOPS_SLOT] = self._given_flops
            known |= _FLOPS_BIT
        rows[base + STEP] = step
        rows[base + END] = self._events[event & _EVENT_MASK] >> _PHASE_BITS
        rows[base + MICRO_BATCHES] = self._micro_batches
        rows[base + EVENT] = event
        rows[base + KNOWN] = known
        rows[base + SEQUENCE] = head
        self._base = base = ((head + 1) % CAPACITY) * ROW
        rows[base : base + ROW] = _EMPTY_ROW
        self._known = -1
        self._counted = self._given_flops = self._micro_batches = 0
        self.head = head + 1  # last: from here on the writer may read the row

    def read(self, first: int, end: int) -> tuple[NDArray[np.int64], int]:
        """Rows of the steps from `first` to before `end`, with their phases added up.

        Returns:
            (n, ROW) rows, and how many leading steps were overwritten before they were read.
        """
        rows = np.frombuffer(self._rows, dtype=np.int64).reshape(CAPACITY, ROW)
        # the row before the first one says where that one's phases begin; the one being written can't be read
        start = max(first, self.head - CAPACITY + 2)
        before = int(rows[(start - 1) % CAPACITY, EVENT]) if start > 0 else 0
        taken = rows[np.arange(start, end) % CAPACITY]
        begins = np.concatenate(([before], taken[:, EVENT]))
        lost_events = int(np.searchsorted(begins, self._event - EVENTS + _EVENT_MARGIN))
        if lost_events:
            start, taken, begins = start + lost_events, taken[lost_events:], begins[lost_events:]
        if len(taken):
            numbers = np.arange(begins[0], begins[-1] + 1)
            events = np.frombuffer(self._events, dtype=np.int64)[numbers & _EVENT_MASK]
            row = np.searchsorted(begins[1:], numbers[:-1], side="right")
            phase = events[:-1] & ((1 << _PHASE_BITS) - 1)
            spent = np.bincount(
                (row << _PHASE_BITS) + phase,
                weights=np.diff(events >> _PHASE_BITS),
                minlength=len(taken) << _PHASE_BITS,
            ).reshape(-1, 1 << _PHASE_BITS)
            taken[:, _PHASE_0:_COUNTER_0] = spent[:, : len(PHASES)]
            taken[:, SWITCHES] = np.diff(begins)
        return taken, start - first

    def take_sums(self) -> tuple[dict[str, float], int]:
        """Counters that every step since the last call knew, summed, and those steps' time in nanoseconds."""
        rows, _ = self.read(self._taken, self.head)
        self._taken = self.head
        if not len(rows):
            return {}, 0
        known = int(np.bitwise_and.reduce(rows[:, KNOWN]))
        # floats, as the FLOPs of many steps overflow 64 bits
        sums = rows[:, _COUNTER_0:].sum(axis=0, dtype=np.float64).tolist()
        counts = {name: sums[slot] for name, slot in _COUNTER_SLOT.items() if known & COUNTER_BIT[name]}
        return counts, int(rows[:, _PHASE_0 : _PHASE_0 + OTHER + 1].sum())

    def end_steps(self) -> None:
        """No more steps: what has passed since the last one becomes spans."""
        if not self.in_steps:
            self._switch_outside(OTHER)
            return
        self._switch(OTHER)
        for phase, start_ns, end_ns in self._unfinished():
            self._on_span(phase, start_ns, end_ns)
        self._outside_since = self._events[(self._event - 1) & _EVENT_MASK] >> _PHASE_BITS
        self.in_steps = False
        self.switch = self._switch_outside

    def _unfinished(self) -> list[tuple[int, int, int]]:
        """(phase, start_ns, end_ns) of the stretches since the last step's end that are over."""
        first = self._rows[((self.head - 1) % CAPACITY) * ROW + EVENT] if self.head else 0
        first = max(first, self._event - EVENTS)
        events = [self._events[number & _EVENT_MASK] for number in range(first, self._event)]
        return [
            (begun & ((1 << _PHASE_BITS) - 1), begun >> _PHASE_BITS, ended >> _PHASE_BITS)
            for begun, ended in pairwise(events)
            if ended >> _PHASE_BITS > begun >> _PHASE_BITS
        ]


def measure_switch_ns(repeats: int = 2000) -> float:
    """What one `switch` costs on this machine, in nanoseconds: the part of effprof's own time not bracketed."""
    clock = PhaseClock(now(), lambda *_: None)
    clock.begin_steps()
    started = now()
    for _ in range(repeats):
        clock.switch(FORWARD)
    return (now() - started) / repeats
