"""Device time without a synchronisation: pooled events recorded at phase switches and read some steps later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from effprof.measure.clock import BACKWARD, FORWARD, OPTIMIZER

if TYPE_CHECKING:
    import torch

# Events are recorded on one step in so many: the cost on the host stays under 2 µs a step on average.
EVERY_N_STEPS = 10
_COMPUTE = {FORWARD: "device_forward_ns", BACKWARD: "device_backward_ns", OPTIMIZER: "device_optimizer_ns"}
GAP = "device_gap_ns"
COLUMNS = (*_COMPUTE.values(), GAP)
_MAX_PENDING = 64


class DeviceClock:
    """Splits sampled steps' time on the device's stream by the phase that launched the work.

    Time between an event recorded at the start of forward and one at the start of backward is the device's forward,
    and so on; whatever lies between the other switches is `device_gap_ns`: the stream waiting for the host.

    Args:
        new_event: makes an event with `record()`, `query()` and `elapsed_time(other)` in milliseconds, such as
            `lambda: torch.Event(device, enable_timing=True)`.
        every_n_steps: how many steps lie between two sampled ones.
    """

    def __init__(self, new_event: Callable[[], Any], every_n_steps: int = EVERY_N_STEPS) -> None:
        self.failure = ""  # why device time is not taken any more
        self._new_event = new_event
        self._every = every_n_steps
        self._pool: list[Any] = []
        self._marks: list[tuple[int, Any]] | None = None
        self._pending: deque[tuple[int, list[tuple[int, Any]]]] = deque()

    def is_sampled(self, sequence: int) -> bool:
        """Whether step number `sequence` (from 0) is one whose device time is taken."""
        return not self.failure and sequence % self._every == 0

    def begin(self, phase: int) -> None:
        """Start a sampled step."""
        self._marks = []
        self.mark(phase)

    def mark(self, phase: int) -> None:
        """The host enters `phase`: remember the point that the device's stream has reached by then."""
        if self._marks is None:
            return
        try:
            event = self._pool.pop() if self._pool else self._new_event()
            event.record()
            self._marks.append((phase, event))
        except Exception as error:  # a stream under capture, a lost device: not for the training to hear from here
            self._give_up(error)

    def end(self, sequence: int) -> None:
        """End the sampled step `sequence`; its events are read later, by `poll`."""
        marks, self._marks = self._marks, None
        if marks and len(self._pending) < _MAX_PENDING:
            self._pending.append((sequence, marks))

    def _give_up(self, error: Exception) -> None:
        self._marks = None
        self._pending.clear()
        self.failure = f"{type(error).__name__}: {error}"

    def poll(self) -> list[tuple[int, dict[str, int]]]:
        """Steps whose events have all been reached: (sequence, column → nanoseconds). Never waits."""
        try:
            return self._read()
        except Exception as error:
            self._give_up(error)
            return []

    def _read(self) -> list[tuple[int, dict[str, int]]]:
        ready = []
        while self._pending and self._pending[0][1][-1][1].query():
            sequence, marks = self._pending.popleft()
            spent = dict.fromkeys(COLUMNS, 0)
            for (phase, event), (_, following) in pairwise(marks):
                spent[_COMPUTE.get(phase, GAP)] += round(event.elapsed_time(following) * 1e6)
            ready.append((sequence, spent))
            self._pool.extend(event for _, event in marks)
        return ready


def device_of(model: torch.nn.Module | None) -> torch.device:
    """Where `model` trains; without one, this process's accelerator, else its CPU."""
    import torch

    if model is not None:
        parameter = next(iter(model.parameters()), None)
        if parameter is not None:
            return parameter.device
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else found


def make_device_clock(device: torch.device) -> DeviceClock | None:
    """A clock of `device`; None on a backend whose events don't measure time."""
    import torch

    try:
        torch.Event(device, enable_timing=True)
    except (RuntimeError, NotImplementedError):
        return None
    return DeviceClock(lambda: torch.Event(device, enable_timing=True))
