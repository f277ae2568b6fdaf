"""Expert load of a mixture-of-experts model: how many tokens each expert received, sampled every N optimizer steps.

Forward hooks are on the routers only while a step is sampled, so that the steps between cost nothing. They read what
the routers return and change nothing: outputs, gradients and random numbers stay as they are, bit for bit.

Counts are of all positions that are routed, padding included, as transformers routes it. A router inside a region
that torch.compile has compiled is not seen (the compiler leaves such hooks out, and these ask it to); compile less
than the router, or leave the load unmeasured.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from effprof.measure.late_copies import LateCopies
from effprof.measure.routers import Reader, Router, find_routers
from effprof.runlog.schema import Event, Experts

# A model whose routers were silent in this many sampled steps is compiled, or routes in another process.
_MAX_SILENT = 3

_Tag = tuple[int, tuple[tuple[str, int | None, bool], ...]]  # step; name, experts and is_mask of each layer


class ExpertLoad:
    """Samples the expert load of `module` every `every_n_steps` optimizer steps.

    Of a sampled step one micro-batch is counted: the first forward of each router. What gradient checkpointing
    computes again, and evaluation in between, are not counted. Without routers it does nothing. `on_step_end` belongs
    to the training thread, `poll` may be called by another.

    Args:
        module: the model.
        every_n_steps: steps between samples; the second step seen is sampled too, so that short runs have one.
        routers: how to read routers that are not found by themselves: glob of module paths → "logits:k", "indices"
            or a function (module, inputs, output) → expert numbers (tokens, k). Example:
            `{"*.mixer.switch": "logits:2"}`.

    Raises:
        EffprofError: `routers` matches no module.
    """

    def __init__(
        self, module: nn.Module, every_n_steps: int = 50, routers: Mapping[str, Reader | str] | None = None
    ) -> None:
        self.routers = find_routers(module, routers)
        self._every_n_steps = max(1, every_n_steps)
        self._handles: list[Any] = []
        self._taken: dict[int, torch.Tensor] = {}
        self._unreadable: set[int] = set()
        self._is_first = True
        self._silent = 0
        self._copies: LateCopies[_Tag] = LateCopies()
        self._arrived: deque[Experts | Event] = deque()

    def on_step_end(self, step: int) -> None:
        """Close the sample that runs, and begin one if the next step is to be sampled.

        Args:
            step: number of optimizer steps done, the one that ends included.
        """
        if self._handles:
            self._end_sample(step)
        if self.routers and (self._is_first or (step + 1) % self._every_n_steps == 0):
            self._is_first = False
            self._handles = [
                router.module.register_forward_hook(_Tap(self, index))
                for index, router in enumerate(self.routers)
                if index not in self._unreadable
            ]

    def poll(self) -> list[Experts | Event]:
        """Lines for the log that have become known since the last call."""
        self._receive(wait=False)
        return [self._arrived.popleft() for _ in range(len(self._arrived))]

    def close(self) -> None:
        """Take the hooks off, and fetch what is still on its way for a last `poll`."""
        self._detach()
        self._receive(wait=True)

    def _end_sample(self, step: int) -> None:
        taken = dict(self._taken)
        self._detach()
        self._silent = 0 if taken else self._silent + 1
        if self._silent >= _MAX_SILENT and len(self._unreadable) < len(self.routers):
            self._disable("no router has run where it can be seen (torch.compile hides them)")
        try:
            for device in {counts.device for counts in taken.values()}:
                here = sorted(index for index, counts in taken.items() if counts.device == device)
                routers = [self.routers[index] for index in here]
                layers = tuple((router.name, router.experts, router.is_mask) for router in routers)
                self._copies.submit((step, layers), [taken[index] for index in here])
        except Exception as error:
            self._disable(f"{type(error).__name__}: {error}")

    def _receive(self, wait: bool) -> None:
        try:
            for (step, layers), arrays in self._copies.poll(wait):
                counted = [_counts(array, experts) for array, (_, experts, _) in zip(arrays, layers, strict=True)]
                self._arrived.append(
                    Experts(
                        step=step,
                        layers=[name for name, _, _ in layers],
                        tokens_per_expert=[tokens for tokens, _ in counted],
                        dropped=[
                            lost if lost or is_mask else None
                            for (_, lost), (_, _, is_mask) in zip(counted, layers, strict=True)
                        ],
                    )
                )
        except Exception as error:
            self._copies.abandon()
            self._disable(f"{type(error).__name__}: {error}")

    def _take(self, index: int, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """The hook of one router: keep the first training forward's counts."""
        if index in self._taken or not (module.training or torch.is_grad_enabled()):
            return
        try:
            with torch.no_grad():
                counts = _count(self.routers[index], inputs, output)
            if counts is not None:
                self._taken[index] = counts
        except Exception as error:
            self._unreadable.add(index)
            if len(self._unreadable) == 1:  # its like fail alike
                self._warn(f"expert load: {error or type(error).__name__}; pass routers= to say how to read it")

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._taken = {}

    def _disable(self, reason: str) -> None:
        self.routers = []
        self._warn(f"expert load is off: {reason}")

    def _warn(self, message: str) -> None:
        data = {"code": "expert_load_not_measured"}
        self._arrived.append(Event(name="warning", monotonic_ns=time.perf_counter_ns(), message=message, data=data))


class _Tap:
    """A forward hook that does not travel: a copied or pickled model carries one that does nothing."""

    def __init__(self, load: ExpertLoad, index: int) -> None:
        self._load = load
        self._index = index

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._load._take(self._index, module, inputs, output)

    def __deepcopy__(self, memo: Any) -> Any:
        return _look_away

    def __reduce__(self) -> Any:
        return _get_look_away, ()


def _look_away(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """A hook that does nothing."""


def _get_look_away() -> Any:
    return _look_away


def _count(router: Router, inputs: tuple[Any, ...], output: Any) -> torch.Tensor | None:
    """Tokens per expert and, last, dropped ones (experts + 1,); the expert numbers where their range is unknown.

    None where this forward can't be counted: a CUDA graph is being captured, whose replays no hook sees.
    """
    routed = router.read(router.module, inputs, output)
    if hasattr(routed, "to_local"):
        routed = routed.to_local()
    routed = routed.detach()
    if routed.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    if router.is_mask:
        kept = routed.reshape(-1, routed.shape[-1]).long()
        per_expert = kept.sum(0)
        return torch.cat([per_expert, (kept.shape[0] - per_expert.sum()).reshape(1)])
    numbers = routed.reshape(-1).long()
    if router.experts is None:
        return numbers.int()
    # bincount would wait for the device to tell the largest number; what lies outside is dropped
    experts = router.experts
    numbers = torch.where((numbers < 0) | (numbers > experts), experts, numbers)
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=numbers.device)
    return counts.scatter_add_(0, numbers, torch.ones_like(numbers))


def _counts(array: Any, experts: int | None) -> tuple[list[int], int]:
    """Tokens per expert, and dropped ones, of what `_count` made."""
    if experts is None:
        kept = array[array >= 0]
        return np.bincount(kept).tolist(), int(array.size - kept.size)
    return array[:-1].tolist(), int(array[-1])
