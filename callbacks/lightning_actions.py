"""What a Lightning Trainer's profiler actions tell that no hook does: the fetch, the transfer, the checkpoint.

Lightning has no hook between fetching a batch and moving it to the device, between the callbacks' hooks and the
training step, nor around saving a checkpoint, but names all of them to its `Trainer.profiler`. This listens to the
names on the trainer's own profiler object and passes them on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter_ns as now
from typing import Any

from effprof.measure.clock import (
    CHECKPOINT,
    FORWARD,
    HOST_TO_DEVICE,
    INPUT_WAIT,
    LOGGING,
    OTHER,
    PHASE_BITS,
    PhaseClock,
)

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
        self.has_seen_batch = False  # whether this version of Lightning says where the training step begins
        transfer = f"[Strategy]{type(trainer.strategy).__name__}.batch_to_device"
        outer: list[int] = []

        def enter_first_batch() -> None:
            self.has_seen_batch = True
            starts[BATCH] = enter_batch
            enter_batch()

        def enter_batch() -> None:
            clock.mark(now() << PHASE_BITS | FORWARD)

        def leave_batch() -> None:
            clock.mark(now() << PHASE_BITS | OTHER)  # what other callbacks do between the batch and effprof's own hook

        def enter_checkpoint() -> None:
            outer.append(clock.phase)
            clock.switch(CHECKPOINT)

        def leave_checkpoint() -> None:
            if outer:
                clock.switch(outer.pop())

        between = (OTHER, INPUT_WAIT)  # a fetch or transfer for an evaluation belongs to the evaluation
        starts: dict[str, Callable[[], None]] = {
            FETCH: clock.entering(INPUT_WAIT, between),
            transfer: clock.entering(HOST_TO_DEVICE, between),
            BATCH: enter_first_batch,
            SAVE: enter_checkpoint,
        }
        stops: dict[str, Callable[[], None]] = {
            FETCH: clock.entering(OTHER, (INPUT_WAIT,)),
            transfer: clock.entering(OTHER, (HOST_TO_DEVICE,)),
            BATCH: leave_batch,
            SAVE: leave_checkpoint,
        }
        self._replaced = {name: self._profiler.__dict__.get(name) for name in ("start", "stop")}
        # the default profiler does nothing: calling it for each of Lightning's 80 actions a step would only cost
        is_silent = type(self._profiler).__name__ == "PassThroughProfiler"
        self._profiler.start = _listen(starts, None if is_silent else self._profiler.start, own_first=True)
        self._profiler.stop = _listen(stops, None if is_silent else self._profiler.stop, own_first=False)

    def remove(self) -> None:
        """Give the profiler its own methods back."""
        for name, value in self._replaced.items():
            if value is None:
                self._profiler.__dict__.pop(name, None)
            else:
                setattr(self._profiler, name, value)


class _Actions(dict[str, None]):
    """Calls the handler of an action that has one when the action is looked up, and knows the others by heart.

    Lightning names some thirty actions a step, three of which matter: the lookup of a name that is in the dictionary
    never leaves the interpreter's own code, which costs a third of the smallest Python function.
    """

    def __init__(self, handlers: dict[str, Callable[[], None]]) -> None:
        super().__init__()
        self._handlers = handlers

    def __missing__(self, action_name: str) -> None:
        handler = self._handlers.get(action_name)
        if handler is not None:
            handler()
        elif len(self) < _MAX_NAMES:
            self[action_name] = None


# A module may name actions of its own, with a number in them; beyond so many they are looked up again each time.
_MAX_NAMES = 4096


def _listen(
    handlers: dict[str, Callable[[], None]], inner: Callable[[str], Any] | None, *, own_first: bool
) -> Callable[[str], None]:
    """A profiler method that calls the handler of an action that has one, before or after the user's own method."""
    listen = _Actions(handlers).__getitem__
    if inner is None:
        return listen

    def listen_too(action_name: str) -> None:
        if own_first:
            listen(action_name)
        inner(action_name)
        if not own_first:
            listen(action_name)

    return listen_too


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
