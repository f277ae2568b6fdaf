"""The hot path: one clock that is always in exactly one phase, so that a step's phases sum to its wall time."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from time import perf_counter_ns as now

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
        # since the last `take_sums`, for the live figures; floats, as a step's FLOPs soon overflow 64 bits
        self._sums = array("d", bytes(8 * len(COUNTERS)))
        self._sums_known = -1
        self._sum_step_ns = 0
        self._on_span = on_span
        self._last = started_ns
        self._spent = array("q", bytes(8 * len(PHASES)))
        self._counts = array("q", bytes(8 * len(COUNTERS)))
        self._known = -1
        self._counted = 0
        self._given_flops = 0
        self._micro_batches = 0
        self._switches = 0

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
        self._spent[self.phase] += time - self._last
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
        totals = self._counts
        for name, value in counts.items():
            totals[_COUNTER_SLOT[name]] += value
            known |= COUNTER_BIT[name]
        self._known &= known
        self._counted += 1

    def add_given_flops(self, flops: int) -> None:
        """This step's share of FLOPs that the user gave."""
        self._given_flops += flops

    def has_spent(self, phase: int) -> bool:
        """Whether any time of the step that is being measured went to `phase`."""
        return self._spent[phase] > 0

    def end_micro_batch(self) -> None:
        """One more micro-batch of this step has been run."""
        self._micro_batches += 1

    def end_step(self, step: int) -> None:
        """Close the step: its row goes to the ring and the next step begins.

        Args:
            step: the framework's count of optimizer steps after this one.
        """
        self.switch(OTHER)
        base = (self.head % CAPACITY) * ROW
        ring, spent = self.ring, self._spent
        # a micro-batch that was not counted makes the step's counters unknown, not smaller
        known = self._known if self._counted and self._counted == self._micro_batches else 0
        if self._given_flops:
            self._counts[_COUNTER_SLOT["flops"]] = self._given_flops
            known |= COUNTER_BIT["flops"]
        ring[base : base + _PHASE_0] = array(
            "q", (step, self._last, self._micro_batches, self._switches, known, self.head)
        )
        ring[base + _PHASE_0 : base + _COUNTER_0] = spent
        ring[base + _COUNTER_0 : base + ROW] = self._counts
        for slot, value in enumerate(self._counts):
            self._sums[slot] += value
        self._sums_known &= known
        self._sum_step_ns += sum(spent[: OTHER + 1])
        self.head += 1
        self._spent = array("q", bytes(8 * len(PHASES)))
        self._counts = array("q", bytes(8 * len(COUNTERS)))
        self._known = -1
        self._counted = 0
        self._given_flops = 0
        self._micro_batches = 0
        self._switches = 0

    def take_sums(self) -> tuple[dict[str, float], int]:
        """Counters that every step since the last call knew, summed, and those steps' time in nanoseconds."""
        counts = {
            name: self._sums[slot] for name, slot in _COUNTER_SLOT.items() if self._sums_known & COUNTER_BIT[name]
        }
        step_ns = self._sum_step_ns
        self._sums = array("d", bytes(8 * len(COUNTERS)))
        self._sums_known = -1
        self._sum_step_ns = 0
        return counts, step_ns

    def end_steps(self) -> None:
        """No more steps: what has passed since the last one becomes spans, laid end to end."""
        if not self.in_steps:
            self._switch_outside(OTHER)
            return
        self._switch(OTHER)
        self.in_steps = False
        self.switch = self._switch_outside
        start = self._last - sum(self._spent)
        for phase, spent in enumerate(self._spent):
            if spent:
                self._on_span(phase, start, start + spent)
                start += spent
        self._spent = array("q", bytes(8 * len(PHASES)))


def measure_switch_ns(repeats: int = 2000) -> float:
    """What one `switch` costs on this machine, in nanoseconds: the part of effprof's own time not bracketed."""
    clock = PhaseClock(now(), lambda *_: None)
    clock.begin_steps()
    started = now()
    for _ in range(repeats):
        clock.switch(FORWARD)
    return (now() - started) / repeats
