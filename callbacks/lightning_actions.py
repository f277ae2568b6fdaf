"""What a Lightning Trainer's profiler actions tell that no hook does: the fetch, the transfer, the checkpoint.

Lightning has no hook between fetching a batch and moving it to the device, between the callbacks' hooks and the
training step, nor around saving a checkpoint, but names all of them to its `Trainer.profiler`. This listens to the
names on the trainer's own profiler object and passes them on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from effprof.measure.clock import CHECKPOINT, FORWARD, HOST_TO_DEVICE, INPUT_WAIT, LOGGING, OTHER, PhaseClock

FETCH = "[_TrainingEpochLoop].train_dataloader_next"
BATCH = "run_training_batch"
SAVE = "save_checkpoint"


class ActionListener:
    """Switches the clock's phase at the profiler actions that matter, until `remove`.

    Args:
        trainer: whose `profiler` is listened to; replaced methods are put back by `remove`.
        clock: the clock to switch.
    """

    def __init__(self, trainer: Any, clock: PhaseClock) -> None:
        self._profiler = trainer.profiler
        self._clock: PhaseClock | None = clock
        self.has_seen_batch = False  # whether this version of Lightning says where the training step begins
        phases = {
            FETCH: INPUT_WAIT,
            BATCH: FORWARD,
            f"[Strategy]{type(trainer.strategy).__name__}.batch_to_device": HOST_TO_DEVICE,
            SAVE: CHECKPOINT,
        }
        find_phase = phases.get
        start, stop = self._profiler.start, self._profiler.stop
        # the default profiler does nothing in either: calling it would only cost
        is_silent = type(self._profiler).__name__ == "PassThroughProfiler"
        outer: list[int] = []

        def listen_start(action_name: str) -> None:
            phase = find_phase(action_name)
            if phase is not None and self._clock is not None:
                self._enter(phase, outer)
            if not is_silent:
                start(action_name)

        def listen_stop(action_name: str) -> None:
            if not is_silent:
                stop(action_name)
            phase = find_phase(action_name)
            if phase is not None and self._clock is not None:
                self._leave(phase, outer)

        self._replaced = {name: self._profiler.__dict__.get(name) for name in ("start", "stop")}
        self._profiler.start = listen_start
        self._profiler.stop = listen_stop

    def remove(self) -> None:
        """Give the profiler its own methods back."""
        self._clock = None
        for name, value in self._replaced.items():
            if value is None:
                self._profiler.__dict__.pop(name, None)
            else:
                setattr(self._profiler, name, value)

    def _enter(self, phase: int, outer: list[int]) -> None:
        clock = self._clock
        if clock is None:
            return
        if phase == CHECKPOINT:
            outer.append(clock.phase)
            clock.switch(CHECKPOINT)
        elif phase == FORWARD:
            self.has_seen_batch = True
            clock.switch(FORWARD)
        elif clock.phase in (OTHER, INPUT_WAIT):  # a fetch or transfer for an evaluation belongs to the evaluation
            clock.switch(phase)

    def _leave(self, phase: int, outer: list[int]) -> None:
        clock = self._clock
        if clock is None:
            return
        if phase == CHECKPOINT:
            if outer:
                clock.switch(outer.pop())
        elif phase == FORWARD or clock.phase == phase:
            clock.switch(OTHER)  # what other callbacks do between the batch and effprof's own hook


def watch_loggers(trainer: Any, clock: PhaseClock) -> list[Callable[[], None]]:
    """Book time in the Trainer's loggers to `logging`; returns what takes that back."""
    undo: list[Callable[[], None]] = []
    for logger in trainer.loggers:
        for name in ("log_metrics", "save"):
            method = getattr(logger, name, None)
            if callable(method) and name not in vars(logger):
                setattr(logger, name, _in_phase(method, LOGGING, clock))
                undo.append(partial(delattr, logger, name))
    return undo


def _in_phase(method: Callable[..., Any], phase: int, clock: PhaseClock) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        outer = clock.phase
        clock.switch(phase)
        try:
            return method(*args, **kwargs)
        finally:
            clock.switch(outer)

    return call
