"""Puts a run's memory on record: predicted at the first batch, states after the first step, and a failure's account."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from time import perf_counter_ns as now
from typing import TYPE_CHECKING, Any

from effprof.measure.detection import state_bytes
from effprof.measure.memory_forecast import forecast_memory
from effprof.measure.memory_tracker import MemoryTracker
from effprof.measure.out_of_memory import account_of_failure, is_out_of_memory
from effprof.measure.session import Session
from effprof.runlog.schema import Event

if TYPE_CHECKING:
    import torch

OUT_OF_MEMORY = "out_of_memory"
# Address space kept free for the account of a failure, never touched and so never resident: where a process runs into
# a limit of its own, listing what it holds needs some megabytes more.
_RESERVE_BYTES = 32 << 20


class MemoryRecord:
    """One rank's memory, in the moments when nothing is in a hurry.

    Args:
        session: where it is written.
        model: what is trained; None where it is not known yet.
        model_config: the model's config where it can't be found.
        tracks: whether one live optimizer step is followed tensor by tensor.
    """

    def __init__(self, session: Session, model: torch.nn.Module | None, model_config: Any, *, tracks: bool) -> None:
        self._session = session
        self._model = model
        self._model_config = model_config
        self._tracker = MemoryTracker(model) if tracks and model is not None else None
        self._optimizers: list[Any] = []
        self._reserve = mmap.mmap(-1, _RESERVE_BYTES)

    def forecast(
        self,
        module: torch.nn.Module | None,
        batch: Any,
        step: Callable[[Any, Any], Any] | None,
        context: Callable[[], Any] | None,
    ) -> None:
        """Predict, on the rank that writes the run's record."""
        session = self._session
        if module is None or batch is None or session.placement.rank != 0:
            return
        record = session.record
        record.memory = forecast_memory(
            module,
            batch,
            config=record.config,
            model_config=self._model_config,
            recompute_share=record.flops.recompute_share,
            step=step,
            context=context,
            device_type=session.device.type,
            world_size=session.placement.world_size,
            # Lightning clears the gradients of the last step between forward and backward
            clears_late="lightning" in record.framework and getattr(module, "automatic_optimization", False),
        )
        session.write_record()

    def begin(self, batch: Any) -> None:
        """A micro-batch begins: follow its step, if it is the one."""
        if self._tracker is not None:
            self._tracker.begin(batch, self._optimizers)

    def on_step_end(self, sequence: int, step: int) -> None:
        """An optimizer step is over."""
        try:
            if self._tracker is not None and self._tracker.end():
                self._put_tracked(self._tracker)
        except Exception as error:
            self._tracker = None
            self._session.warn("memory_tracker_failed", f"the memory tracker failed ({type(error).__name__}: {error})")

    def record_states(self, optimizers: Iterable[Any]) -> None:
        """The first optimizer step is done, so all states exist."""
        if self._model is None:
            return
        self._optimizers = [optimizer for optimizer in optimizers if optimizer is not None]
        session = self._session
        session.record.model.update(state_bytes(self._model, self._optimizers))
        session.recorder.add(session.memory_line(with_device=True))
        session.write_record()
        if self._tracker is not None:
            self._tracker.is_due = True

    def close(self, error: BaseException | None = None, optimizers: Iterable[Any] = ()) -> None:
        """Training is over; where memory ran out, leave the account of what filled it."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None and (tracker.end() or tracker.facts is None):
            self._put_tracked(tracker)
        self._reserve.close()
        if error is None or not is_out_of_memory(error):
            return
        session = self._session
        states = self._optimizers or [optimizer for optimizer in optimizers if optimizer is not None]
        facts = account_of_failure(error, self._model, states, session.device.type)
        line = session.memory_line(with_device=True)
        session.recorder.add(line)
        data = {name: value for name, value in facts.items() if value is not None}
        message = str(error).strip().splitlines()
        session.recorder.add(
            Event(
                name=OUT_OF_MEMORY,
                monotonic_ns=now(),
                message=f"{type(error).__name__}: {message[0][:300] if message else ''}",
                data=data,
            )
        )

    def _put_tracked(self, tracker: MemoryTracker) -> None:
        record = self._session.record
        if tracker.facts is None:
            record.memory.setdefault("reasons", {})["tracked"] = tracker.reason
        else:
            record.memory["tracked"] = tracker.facts
        self._session.write_record()
