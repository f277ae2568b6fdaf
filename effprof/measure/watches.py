"""What is watched beside the phases of a step: the device's time, experts, kernel windows, compilations, losses, …

Each is optional and on its own: one that fails is off, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns as now
from typing import TYPE_CHECKING, Any

from effprof.measure.clock import OTHER
from effprof.measure.compile_watch import CompileWatch
from effprof.measure.device_clock import DeviceClock, make_device_clock
from effprof.measure.experts import ExpertLoad
from effprof.measure.garbage_watch import COLUMN as GARBAGE
from effprof.measure.garbage_watch import GarbageWatch
from effprof.measure.kernel_window import KernelWindow
from effprof.measure.losses import LossRecord
from effprof.measure.recorder import Late
from effprof.measure.session import Session
from effprof.runlog.schema import Event, Line

if TYPE_CHECKING:
    import torch

NOT_FINITE = "loss_not_finite"


class Watches:
    """The watches of one session, from its start to its end.

    Args:
        session: where what is seen goes.
        model: what is trained; None where it is not known.
        device: the device that this rank trains on.
        experts_every_n_steps, routers: see `ExpertLoad`; 0 is never.
        kernel_window, keep_trace: see `KernelWindow`.
    """

    def __init__(
        self,
        session: Session,
        model: torch.nn.Module | None,
        device: torch.device,
        *,
        experts_every_n_steps: int,
        routers: Mapping[str, Any] | None,
        kernel_window: bool | int,
        keep_trace: bool,
    ) -> None:
        self._session = session
        self._device_clock: DeviceClock | None = None
        self._experts: ExpertLoad | None = None
        self._window: KernelWindow | None = None
        self._compile = CompileWatch(session.clock)
        self._compile.install()
        self._garbage = GarbageWatch(session.clock)
        session.recorder.zero_columns = (GARBAGE,)
        self.losses: LossRecord | None = LossRecord(on_not_finite=self._note_not_finite)
        # called with (sequence, step) after each step; a plain training on a CPU needs but the window's
        self.parts: list[Callable[[int, int], None]] = []
        if device.type != "cpu":
            self._watch_device(device)
        if model is not None and experts_every_n_steps > 0:
            with session.guarded("expert load"):
                self._watch_experts(ExpertLoad(model, every_n_steps=experts_every_n_steps, routers=routers))
        with session.guarded("kernel window"):
            self._window = KernelWindow(session, session.clock, every=kernel_window, keep_trace=keep_trace)
            self.parts.append(self._window.on_step_end)

    def add_loss(self, loss: Any) -> None:
        """A micro-batch of the step that runs has this loss."""
        if self.losses is None:
            return
        try:
            sequence = self._session.clock.head
            if self.losses.add(sequence, loss):
                self._session.recorder.expect(sequence)
        except Exception as error:
            self._give_up_losses(error)

    def end_first_steps(self) -> None:
        """One of the first steps is over: a compiler may have been loaded in it."""
        self._compile.note_late_load()

    def poll_late(self, *, is_closing: bool) -> Late:
        """Values that have arrived for steps that are over; by the writer's thread. Waits only when closing."""
        arrived: list[tuple[int, Mapping[str, float]]] = [*self._garbage.poll()]
        if self._device_clock is not None:
            arrived += self._device_clock.poll()
        if self._window is not None:
            arrived += self._window.take_late()
        if self.losses is not None:
            try:
                arrived += self.losses.poll(self._session.clock.head, wait=is_closing)
            except Exception as error:
                self._give_up_losses(error)
        return arrived

    def each_second(self) -> list[Line]:
        """More lines for the log; by the writer's thread."""
        if self._window is not None:
            self._window.poll()
        if self._device_clock is not None and self._device_clock.failure:
            message = f"device time is not measured any more ({self._device_clock.failure})"
            self._session.warn("device_clock_disabled", message, aloud=False)
        return [*self._experts.poll()] if self._experts is not None else []

    def close(self) -> dict[str, Any]:
        """Stop watching; what was seen, by the names of `effprof.runlog.settings`."""
        if self._experts is not None:
            self._experts.close()
        if self._window is not None:
            self._window.close()
        self._garbage.remove()
        self._send_last_losses()
        self._session.recorder.flush()  # the last losses arrive
        facts = self._compile.facts() | self._garbage.facts()
        self._compile.remove()
        return facts if self.losses is None else facts | self.losses.facts()

    def _watch_device(self, device: torch.device) -> None:
        self._device_clock = make_device_clock(device)
        if self._device_clock is not None:
            self._session.clock.listen(self._device_clock.mark)
            self.parts.append(self._time_device)
        self.parts.append(self._end_step_of_losses)

    def _watch_experts(self, experts: ExpertLoad) -> None:
        self._experts = experts
        if experts.routers:
            self.parts.append(lambda sequence, step: experts.on_step_end(step))

    def _time_device(self, sequence: int, step: int) -> None:
        device_clock = self._device_clock
        if device_clock is None:
            return
        if device_clock.is_sampled(sequence) and sequence > 0:
            device_clock.end(sequence)
            self._session.recorder.expect(sequence)
        if device_clock.is_sampled(sequence + 1):
            device_clock.begin(OTHER)

    def _end_step_of_losses(self, sequence: int, step: int) -> None:
        if self.losses is not None:
            try:
                self.losses.end_step()
            except Exception as error:
                self._give_up_losses(error)

    def _send_last_losses(self) -> None:
        if self.losses is not None:
            try:
                self.losses.send()
            except Exception as error:
                self._give_up_losses(error)

    def _note_not_finite(self, sequence: int) -> None:
        message = f"the loss of step {sequence + 1} of this attempt is not finite"
        self._session.recorder.add(Event(name=NOT_FINITE, monotonic_ns=now(), message=message))

    def _give_up_losses(self, error: Exception) -> None:
        self.losses = None
        self._session.warn("losses_disabled", f"losses are not recorded ({type(error).__name__}: {error})", aloud=False)
