"""Turns between two trials: this one steps for a second, then waits between two steps while the other does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
from pathlib import Path
from time import monotonic
from typing import Any

from effprof.advise.turns import ALONE, DONE, FREE, FROM_TRIAL, READY, TO_TRIAL, TURN_S

PATIENCE_S = 600.0  # whoever asked for the turns is gone then


class Turns:
    """What a trial does at the end of each step.

    Args:
        folder: the trial's directory, with the pipes.

    Attributes:
        ends: number of the step behind which each wait came, the first one left out: turn 0 begins with it.
    """

    def __init__(self, folder: str) -> None:
        place = Path(folder)
        self.ends: list[int] = []
        self._to = os.open(place / FROM_TRIAL, os.O_RDWR)
        self._from = os.open(place / TO_TRIAL, os.O_RDWR)
        self._began: float | None = None
        self._is_over = False

    def end_step(self, trainer: Any, step: int) -> float:
        """Waits where the turn is over.

        Returns:
            Seconds waited.
        """
        now = monotonic()
        if self._is_over or (self._began is not None and now - self._began < TURN_S):
            return 0.0
        if self._began is None and (trainer.world_size > 1 or trainer.strategy.root_device.type != "cpu"):
            self._is_over = True
            os.write(self._to, ALONE)
            return 0.0
        if self._began is not None:
            self.ends.append(step)
        workers = [each.pid for each in multiprocessing.active_children() if each.pid is not None]
        _signal(workers, signal.SIGSTOP)  # else they would make batches for the next turn in the other's time
        os.write(self._to, READY if self._began is None else DONE)
        is_told = select.select([self._from], [], [], PATIENCE_S)[0]
        self._is_over = not is_told or os.read(self._from, 1) == FREE
        _signal(workers, signal.SIGCONT)
        self._began = monotonic()
        return self._began - now


def _signal(workers: list[int], number: int) -> None:
    for each in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)
