"""The part of StepProfiler that a loop of one's own uses: batches, steps and phases named where they happen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from effprof.errors import EffprofError
from effprof.measure.clock import INPUT_WAIT, OPTIMIZER, OTHER, PHASE_NUMBER, PhaseClock

Batch = TypeVar("Batch")


class PlainLoop(ABC):
    """`watch`, `step` and `phase`, in terms of what a framework's adapter calls."""

    _accumulate: int
    _steps: int
    _loader: Any = None

    @abstractmethod
    def _require_open(self) -> PhaseClock: ...

    @abstractmethod
    def count_batch(self, batch: Any) -> None: ...

    @abstractmethod
    def end_micro_batch(self) -> None: ...

    @abstractmethod
    def end_step(self, step: int) -> None: ...

    def watch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches; time in the loader is input wait, every `accumulate` batches are a step."""
        clock = self._require_open()
        clock.begin_steps()
        self._loader = loader
        batches = iter(loader)
        done = 0
        while True:
            clock.switch(INPUT_WAIT)
            try:
                batch = next(batches)
            except StopIteration:
                clock.switch(OTHER)
                return
            clock.switch(OTHER)
            self.count_batch(batch)
            try:
                yield batch
            except GeneratorExit:
                # a loop that is left after its optimizer step has still done the step
                if clock.has_spent(OPTIMIZER) or clock.phase == OPTIMIZER:
                    self.end_micro_batch()
                    self.end_step(self._steps + 1)
                raise
            self.end_micro_batch()
            done += 1
            if done % self._accumulate == 0:
                self.end_step(self._steps + 1)

    @contextmanager
    def step(self, batch: Any = None) -> Iterator[None]:
        """One optimizer step. `batch`, where given, is what its tokens are counted from."""
        clock = self._require_open()
        clock.begin_steps()
        if batch is not None:
            self.count_batch(batch)
        yield
        self.end_micro_batch()
        self.end_step(self._steps + 1)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A span of the step: input_wait, host_to_device, forward, backward, optimizer, generation, evaluation, …

        Raises:
            EffprofError: `name` is not a phase.
        """
        number = PHASE_NUMBER.get(name)
        if number is None:
            raise EffprofError(f"unknown phase {name!r}", f"use one of {', '.join(PHASE_NUMBER)}")
        clock = self._require_open()
        before = clock.phase
        clock.switch(number)
        try:
            yield
        finally:
            clock.switch(before)
