"""A trial: a short stretch of the user's own training with some settings changed, as `effprof verify` asks for.

The request is JSON in the environment variable `EFFPROF_TRIAL` (`TrialRequest`). A trial writes nothing where the
training would: no checkpoints, no evaluation, loggers of files write into the trial's own directory and others are left
out. It ends the process when it is done, so that what the script does after `fit` is not done with a model that was
trained for seconds.
"""

from __future__ import annotations

import contextlib
import os
from time import monotonic
from typing import Any

import msgspec

from effprof.advise.changes import check_changes
from effprof.advise.rehearsal import write_rehearsed
from effprof.callbacks.lightning_changes import apply_early, apply_to_optimizers, watch_loader
from effprof.callbacks.lightning_rehearsal import Rehearsal
from effprof.callbacks.lightning_turns import Turns
from effprof.errors import EffprofError
from effprof.measure.clock import EFFPROF, OTHER, PhaseClock

VARIABLE = "EFFPROF_TRIAL"
MIN_STEPS = 5  # fewer carry no interval
NOT_IN_TRIALS = ("Checkpoint", "EarlyStopping", "WeightAveraging", "StochasticWeightAveraging")


class TrialRequest(msgspec.Struct, kw_only=True):
    """What the parent process asks for."""

    changes: dict[str, Any] = {}  # see `effprof.advise.changes`
    run_dir: str
    seconds: float = 20.0
    steps: int | None = None
    is_measuring: bool = False  # also record what recommendations rest on
    rehearse: list[dict[str, Any]] = []  # sets of changes to time in this process once the steps are done
    rehearse_s: float = 5.0  # for each of them
    takes_turns: bool = False  # with the other side's trial, see `effprof.advise.turns`


class LightningTrial:
    """Makes one `fit` a trial."""

    def __init__(self, request: TrialRequest) -> None:
        self.request = request
        self.refused: dict[str, str] = {}
        self._first_step_end: float | None = None
        self._steps = 0
        self._rehearsal = Rehearsal(request.rehearse, request.rehearse_s) if request.rehearse else None
        self._turns = Turns(request.run_dir) if request.takes_turns else None

    @property
    def applied(self) -> dict[str, Any]:
        """The changes that were made."""
        return {name: value for name, value in self.request.changes.items() if name not in self.refused}

    def settings(self) -> dict[str, Any]:
        """Arguments of the profiler in a trial: where it writes, and nothing that takes time of its own.

        A measuring trial keeps what the training asked for, and records a kernel window.
        """
        if self.request.is_measuring:
            return {"run_dir": self.request.run_dir, "kernel_window": True}
        return {
            "run_dir": self.request.run_dir,
            "telemetry": False,
            "experts_every_n_steps": 0,
            "kernel_window": False,
            "track_memory": False,
            "detect": False,
        }

    def begin(self, trainer: Any, module: Any) -> None:
        """Before the strategy sets up the model: what the trial must not do, and the changes that come early."""
        trainer.callbacks = [each for each in trainer.callbacks if not _is_left_out(each)]
        trainer.loggers = [logger for logger in trainer.loggers if _redirect(logger, self.request.run_dir)]
        trainer.limit_val_batches = 0
        trainer.num_sanity_val_steps = 0
        trainer._effprof_accumulates = "accumulate" in self.request.changes
        self.refused.update(apply_early(trainer, module, self.request.changes))
        watch_loader(trainer, self.request.changes, self.refused)

    def change_optimizers(self, trainer: Any, module: Any) -> None:
        """Once the optimizers are there."""
        self.refused.update(apply_to_optimizers(trainer, module, self.request.changes))
        for schedule in trainer.lr_scheduler_configs:
            schedule.strict = False  # it may wait for a figure of the evaluation, which there is none of

    def end_batch(self, batch: Any) -> None:
        """After a micro-batch."""
        if self._rehearsal is not None:
            self._rehearsal.end_batch(batch)

    def end_step(self, trainer: Any, module: Any, clock: PhaseClock, step: int) -> None:
        """After optimizer step number `step`: waits for a turn, rehearses, stops the training when it was enough."""
        self._steps += 1
        now = monotonic()
        if self._first_step_end is None:
            self._first_step_end = now
        has_enough = self.request.steps is not None and self._steps >= max(MIN_STEPS, self.request.steps)
        is_over = self._steps >= MIN_STEPS and now - self._first_step_end >= self.request.seconds
        if has_enough or is_over:
            rehearsal, self._rehearsal = self._rehearsal, None
            if rehearsal is not None:
                clock.switch(EFFPROF)  # no part of the training
                write_rehearsed(self.request.run_dir, rehearsal.run(trainer, module))
                clock.switch(OTHER)
            trainer.should_stop = True
            trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, 0
        elif self._turns is not None:
            clock.switch(EFFPROF)  # the wait is no part of a step
            self._first_step_end += self._turns.end_step(trainer, step)
            clock.switch(OTHER)

    def facts(self) -> dict[str, Any]:
        """What the record says of the trial; `turns` fills while it runs."""
        turns = {} if self._turns is None else {"turns": self._turns.ends}
        return {"applied": self.applied, "refused": dict(self.refused), **turns}


def requested_trial() -> LightningTrial | None:
    """The trial that the environment asks for; None in an ordinary training.

    Raises:
        EffprofError: the request cannot be read.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        request = msgspec.json.decode(text, type=TrialRequest)
    except msgspec.DecodeError as error:
        raise EffprofError(f"{VARIABLE}: {error}", "unset it, or let `effprof verify` set it") from error
    check_changes(request.changes)
    return LightningTrial(request)


def _is_left_out(callback: Any) -> bool:
    return any(base.__name__ in NOT_IN_TRIALS for base in type(callback).__mro__)


def _redirect(logger: Any, folder: str) -> bool:
    """Sends a logger of files into the trial's directory; false for one that cannot be."""
    if not hasattr(logger, "_root_dir") or not hasattr(logger, "_experiment"):
        return False
    # the Trainer has opened it before any callback's turn; a directory that holds nothing yet goes again
    opened, logger._experiment = logger.log_dir, None
    with contextlib.suppress(OSError):
        os.rmdir(opened)
        os.rmdir(os.path.dirname(opened))
    logger._root_dir = os.path.join(folder, "logs")
    if hasattr(logger, "_save_dir"):
        logger._save_dir = logger._root_dir
    return True
