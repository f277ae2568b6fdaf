"""The hot path: one clock that is always in exactly one phase, so that a step's phases sum to its wall time."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from time import perf_counter_ns as now

import numpy as np

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

# A row of the ring: one finished optimizer step.
STEP, END, MICRO_BATCHES, SWITCHES, KNOWN, SEQUENCE = range(6)
_PHASE_0 = 6
_COUNTER_0 = _PHASE_0 + len(PHASES)
ROW = _COUNTER_0 + len(COUNTERS)
CAPACITY = 8192  # steps held between two visits of the writer, 0.5 s apart

PHASE_COLUMNS = {f"{name}_ns": _PHASE_0 + number for number, name in enumerate(PHASES)}
COUNTER_COLUMNS = {name: _COUNTER_0 + number for number, name in enumerate(COUNTERS)}
COUNTER_BIT = {name: 1 << number for number, name in enumerate(COUNTERS)}
_COUNTER_SLOT = {name: number for number, name in enumerate(COUNTERS)}
_FLOPS_SLOT, _FLOPS_BIT = COUNTER_COLUMNS["flops"], COUNTER_BIT["flops"]
_EMPTY_ROW = array("q", bytes(8 * ROW))


class PhaseClock:
    """Adds every nanosecond to the phase that is current, and hands over a row per optimizer step.

    `switch` is what runs between the user's own lines: a clock read and two stores into a preallocated array.
    Before the first step and after the last one the time goes to `on_span` instead of to a step's row.

    Args:
        started_ns: monotonic time at which the clock takes over.
        on_span: called with (phase number, start_ns, end_ns) for each stretch outside steps.
    """

    def __init__(self, started_ns: int, on_span: Callable[[int, int, int], None]) -> None:
        self.phase = STARTUP
        self.ring = array("q", bytes(8 * ROW * CAPACITY))
        self.head = 0  # rows finished, ever; the writer keeps its own tail
        self.in_steps = False
        self.switch: Callable[[int], None] = self._switch_outside
        self.on_device_switch: Callable[[int], None] | None = None
        self._on_span = on_span
        self._last = started_ns
        # the step that runs is added up in its own row of the ring, so that its end copies nothing
        self._phases = _PHASE_0
        self._counters = _COUNTER_0
        self._known = -1
        self._counted = 0
        self._given_flops = 0
        self._micro_batches = 0
        self._switches = 0
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
        self.switch = self._switch

    def _switch(self, phase: int) -> None:
        time = now()
        self.ring[self._phases + self.phase] += time - self._last
        self._last = time
        self.phase = phase
        self._switches += 1
        if self.on_device_switch is not None:
            self.on_device_switch(phase)

    def _switch_outside(self, phase: int) -> None:
        time = now()
        if time > self._last:
            self._on_span(self.phase, self._last, time)
        self._last = time
        self.phase = phase

    def add_counts(self, counts: dict[str, int]) -> None:
        """Add one micro-batch's counters to the step; one that is missing here is missing for the whole step."""
        known = 0
        ring, base = self.ring, self._counters
        for name, value in counts.items():
            ring[base + _COUNTER_SLOT[name]] += value
            known |= COUNTER_BIT[name]
        self._known &= known
        self._counted += 1

    def add_given_flops(self, flops: int) -> None:
        """This step's share of FLOPs that the user gave."""
        self._given_flops += flops

    def has_spent(self, phase: int) -> bool:
        """Whether any time of the step that is being measured went to `phase`."""
        return self.ring[self._phases + phase] > 0

    def end_micro_batch(self) -> None:
        """One more micro-batch of this step has been run."""
        self._micro_batches += 1

    def end_step(self, step: int) -> None:
        """Close the step: its row of the ring is complete and the next step begins.

        Args:
            step: the framework's count of optimizer steps after this one.
        """
        self.switch(OTHER)
        ring, head = self.ring, self.head
        base = self._phases - _PHASE_0
        # a micro-batch that was not counted makes the step's counters unknown, not smaller
        known = self._known if self._counted and self._counted == self._micro_batches else 0
        if self._given_flops:
            ring[base + _FLOPS_SLOT] = self._given_flops
            known |= _FLOPS_BIT
        ring[base + STEP] = step
        ring[base + END] = self._last
        ring[base + MICRO_BATCHES] = self._micro_batches
        ring[base + SWITCHES] = self._switches
        ring[base + KNOWN] = known
        ring[base + SEQUENCE] = head
        base = ((head + 1) % CAPACITY) * ROW
        ring[base : base + ROW] = _EMPTY_ROW
        self._phases = base + _PHASE_0
        self._counters = base + _COUNTER_0
        self._known = -1
        self._counted = self._given_flops = self._micro_batches = self._switches = 0
        self.head = head + 1  # last: from here on the writer may read the row

    def take_sums(self) -> tuple[dict[str, float], int]:
        """Counters that every step since the last call knew, summed, and those steps' time in nanoseconds."""
        first = max(self._taken, self.head - CAPACITY + 1)
        self._taken = self.head
        if first == self.head:
            return {}, 0
        rows = np.frombuffer(self.ring, dtype=np.int64).reshape(CAPACITY, ROW)[np.arange(first, self.head) % CAPACITY]
        known = int(np.bitwise_and.reduce(rows[:, KNOWN]))
        # floats, as the FLOPs of many steps overflow 64 bits
        sums = rows[:, _COUNTER_0:].sum(axis=0, dtype=np.float64).tolist()
        counts = {name: sums[slot] for name, slot in _COUNTER_SLOT.items() if known & COUNTER_BIT[name]}
        return counts, int(rows[:, _PHASE_0 : _PHASE_0 + OTHER + 1].sum())

    def end_steps(self) -> None:
        """No more steps: what has passed since the last one becomes spans, laid end to end."""
        if not self.in_steps:
            self._switch_outside(OTHER)
            return
        self._switch(OTHER)
        self.in_steps = False
        self.switch = self._switch_outside
        unfinished = self.ring[self._phases : self._phases + len(PHASES)]
        start = self._last - sum(unfinished)
        for phase, spent in enumerate(unfinished):
            if spent:
                self._on_span(phase, start, start + spent)
                start += spent


def measure_switch_ns(repeats: int = 2000) -> float:
    """What one `switch` costs on this machine, in nanoseconds: the part of effprof's own time not bracketed."""
    clock = PhaseClock(now(), lambda *_: None)
    clock.begin_steps()
    started = now()
    for _ in range(repeats):
        clock.switch(FORWARD)
    return (now() - started) / repeats
