"""Puts each step's loss on record without waiting for it: kept now, read later by the writer's thread."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter_ns as now
from typing import Any

import torch

from effprof.measure.late_copies import LateCopies

COLUMN = "loss"
# On a device the losses of several steps travel in one copy: at the latest after so many, or so long. A copy costs the
# host some 25 µs, the rows of the log wait half a second for it.
_STEPS_PER_COPY = 16
_COPY_EVERY_NS = 100_000_000
# Losses kept where the writer does not come by to read them.
_MAX_KEPT = 65536

Kept = tuple[int, torch.Tensor]  # step sequence, loss of one micro-batch


class LossRecord:
    """Collects micro-batches' losses on the training thread and hands over steps' losses on the writer's.

    Args:
        takes_mean: whether a step's loss is the mean of its micro-batches'; else their sum, for a framework that has
            already divided them.
        on_not_finite: told the sequence of the first step whose loss is not finite.
    """

    def __init__(self, *, takes_mean: bool = True, on_not_finite: Callable[[int], None] | None = None) -> None:
        self.takes_mean = takes_mean
        self.scale: Callable[[], Any] | None = None  # gives the fp16 gradient scaler's scale, a tensor or None
        self._on_not_finite = on_not_finite
        self._kept: deque[Kept] = deque()
        self._waiting: list[Kept] = []  # on a device: not copied yet
        self._copied_ns = 0
        self._copies: LateCopies[list[int]] = LateCopies()
        self._recorded = 0
        self._not_finite = 0
        self._last_scale: float | None = None
        self._skipped = 0

    def add(self, sequence: int, loss: Any) -> bool:
        """Keep the loss of a micro-batch of step `sequence`; whether it lies on a device and will arrive late.

        Anything but a plain tensor of one element is passed over: a tensor spread over ranks would need a collective.
        """
        if type(loss) is not torch.Tensor or loss.numel() != 1:
            return False
        if loss.requires_grad:
            loss = loss.detach()
        if loss.is_cpu:
            if len(self._kept) < _MAX_KEPT:
                self._kept.append((sequence, loss))
            return False
        self._waiting.append((sequence, loss))
        return True

    def end_step(self) -> None:
        """A step is over: send what has waited long enough. Only needed on a device."""
        if len(self._waiting) >= _STEPS_PER_COPY or (self._waiting and now() - self._copied_ns > _COPY_EVERY_NS):
            self.send()

    def send(self) -> None:
        """Send the losses that wait, behind the work that makes them; never waits for the device."""
        waiting, self._waiting = self._waiting, []
        self._copied_ns = now()
        if not waiting:
            return
        losses = torch.stack([loss.reshape(()) for _, loss in waiting])
        if losses.dtype == torch.bfloat16:  # numpy has no such dtype
            losses = losses.float()
        scale = self.scale() if self.scale is not None else None
        tensors = [losses] if scale is None else [losses, scale.reshape(1)]
        self._copies.submit([sequence for sequence, _ in waiting], tensors)

    def poll(self, until: int, wait: bool = False) -> list[tuple[int, dict[str, float]]]:
        """(step sequence, {column: loss}) that have arrived of steps below `until`; `wait` only when training is over.

        A loss that is not finite is counted, and left out.
        """
        arrived: dict[int, list[float]] = {}
        while self._kept and self._kept[0][0] < until:
            sequence, loss = self._kept.popleft()
            arrived.setdefault(sequence, []).append(float(loss))
        for sequences, arrays in self._copies.poll(wait):
            for sequence, value in zip(sequences, arrays[0].tolist(), strict=True):
                arrived.setdefault(sequence, []).append(float(value))
            for scale in arrays[1:]:
                self._watch_scale(float(scale[0]))
        if self.scale is not None and arrived:
            scale = self.scale()
            if scale is not None and scale.is_cpu:
                self._watch_scale(float(scale))
        return list(self._combined(arrived.items()))

    def facts(self) -> dict[str, Any]:
        """What the losses tell of the run so far."""
        facts: dict[str, Any] = {"losses_recorded": self._recorded, "losses_not_finite": self._not_finite}
        if self._last_scale is not None:
            facts |= {"grad_scale": self._last_scale, "skipped_steps_at_least": self._skipped}
        return facts if self._recorded else {}

    def _combined(self, arrived: Iterable[tuple[int, list[float]]]) -> Iterator[tuple[int, dict[str, float]]]:
        for sequence, parts in arrived:
            self._recorded += 1
            value = sum(parts) / (len(parts) if self.takes_mean else 1)
            if math.isfinite(value):
                yield sequence, {COLUMN: value}
                continue
            self._not_finite += 1
            if self._not_finite == 1 and self._on_not_finite is not None:
                self._on_not_finite(sequence)
            yield sequence, {}

    def _watch_scale(self, scale: float) -> None:
        """A scaler halves its scale for each step that it skips."""
        if self._last_scale is not None and 0 < scale < self._last_scale:
            self._skipped += max(1, round(math.log2(self._last_scale / scale)))
        self._last_scale = scale
