"""Follows the memory that tensors hold while code runs: every storage from its birth to its death.

`LiveTensors` is a torch dispatch mode. It sees the storages that operations return, real or fake, and notices through
weak references when the last tensor on one of them is gone. Memory that a kernel takes and gives back inside one
operation is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class LiveMemory:
    """What was live in one stretch of code, beside the states that were there before it.

    Attributes:
        kept_bytes: live when the backward pass began: what autograd keeps, and outputs that are still in use.
        forward_peak_bytes: most that was live before that.
        peak_bytes: most that was ever live, gradients made in this stretch included.
        peak_gradients_bytes: gradients of parameters within the peak.
        peak_temporary_bytes: born in the backward pass or after it and no gradient of a parameter, within the peak.
        end_bytes: still live at the end (new gradients, above all).
        gradients_bytes: gradients that this stretch made.
        peak_at: "forward", "backward" or "after" the backward pass (the optimizer's step).
        largest: (shape and dtype, number, bytes together) of the tensors live at the peak, largest first.
    """

    kept_bytes: int
    forward_peak_bytes: int
    peak_bytes: int
    peak_gradients_bytes: int
    peak_temporary_bytes: int
    end_bytes: int
    gradients_bytes: int
    peak_at: str
    largest: tuple[tuple[str, int, int], ...]

    @property
    def peak_activations_bytes(self) -> int:
        """What the forward pass had made and was still live at the peak."""
        return self.peak_bytes - self.peak_gradients_bytes - self.peak_temporary_bytes


class _Storage:
    __slots__ = ("born", "bytes", "died", "is_backward", "is_gradient", "is_held", "label")

    def __init__(self, size: int, label: str, born: int, is_backward: bool, is_held: bool) -> None:
        self.bytes, self.label, self.born, self.is_backward = size, label, born, is_backward
        self.is_held = self.is_gradient = is_held
        self.died: int | None = None


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks while it is entered.

    Args:
        parameters: their gradients are told from other tensors when a backward pass is over.

    Attributes:
        live_bytes: what is live now of what was born under this mode.
    """

    def __init__(self, parameters: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = list(parameters)
        self.live_bytes = 0
        self._clock = 0
        self._peak_bytes, self._peak_at = 0, 0
        self._kept_bytes = 0
        self._forward_peak_bytes = 0
        self._was_in_backward = False
        self._peak_in_backward = False
        self._last_backward = 0
        self._storages: list[_Storage] = []
        # keyed by the address of the storage, which is free again when the weak reference dies
        self._known: dict[int, tuple[weakref.ref[Any], _Storage | None]] = {}

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leave out storages that exist already: parameters, optimizer state, the batch."""
        for tensor in tensors:
            storage = _storage_of(tensor)
            if storage is not None:
                self._enter(storage, None)

    def hold_gradients(self) -> None:
        """Count gradients that exist already: they may be gone before the peak."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                self._see(parameter.grad, is_backward=False, is_held=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        is_backward = bool(torch._C._current_graph_task_id() != -1)
        if is_backward and not self._was_in_backward:
            # the operation that has just run is the first of a backward pass; what it made is not counted yet
            self._kept_bytes = max(self._kept_bytes, self.live_bytes)
        if self._was_in_backward and not is_backward:
            self._mark_gradients()
        self._was_in_backward = is_backward
        self._clock += 1
        if is_backward:
            self._last_backward = self._clock
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor, is_backward)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def result(self) -> LiveMemory:
        """What was seen."""
        self._mark_gradients()
        at_peak = [each for each in self._storages if self._is_live(each, self._peak_at)]
        parameters_bytes = sum(each.bytes for each in at_peak if each.is_gradient)
        # a second loss's forward pass comes before its backward pass, the optimizer's step after all of them
        is_after = self._peak_at > self._last_backward > 0
        late = [each for each in at_peak if each.is_backward or (is_after and each.born > self._last_backward)]
        temporary = sum(each.bytes for each in late if not each.is_gradient)
        return LiveMemory(
            kept_bytes=self._kept_bytes,
            forward_peak_bytes=self._forward_peak_bytes,
            peak_bytes=self._peak_bytes,
            peak_gradients_bytes=parameters_bytes,
            peak_temporary_bytes=temporary,
            end_bytes=self.live_bytes,
            gradients_bytes=sum(each.bytes for each in self._storages if each.is_gradient and not each.is_held),
            peak_at="after" if is_after else "backward" if self._peak_in_backward else "forward",
            largest=_group(at_peak),
        )

    def kept(self) -> tuple[tuple[str, int, int], ...]:
        """What is live now, as `LiveMemory.largest` has it."""
        return _group([each for each in self._storages if each.died is None])

    def _mark_gradients(self) -> None:
        for parameter in self._parameters:
            storage = _storage_of(parameter.grad) if parameter.grad is not None else None
            known = self._known.get(storage._cdata) if storage is not None else None
            if known is not None and known[1] is not None:
                known[1].is_gradient = True

    def _see(self, tensor: torch.Tensor, is_backward: bool, is_held: bool = False) -> None:
        storage = _storage_of(tensor)
        if storage is None:
            return
        known = self._known.get(storage._cdata)
        if known is not None and known[0]() is storage:
            return
        label = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        record = _Storage(storage.nbytes(), label, self._clock, is_backward, is_held)
        self._storages.append(record)
        self._enter(storage, record)
        self.live_bytes += record.bytes
        if not self._last_backward:
            self._forward_peak_bytes = max(self._forward_peak_bytes, self.live_bytes)
        if self.live_bytes > self._peak_bytes:
            self._peak_bytes, self._peak_at, self._peak_in_backward = self.live_bytes, self._clock, is_backward

    def _enter(self, storage: torch.UntypedStorage, record: _Storage | None) -> None:
        key = storage._cdata

        def forget(reference: weakref.ref[Any]) -> None:
            known = self._known.get(key)
            if known is not None and known[0] is reference:
                del self._known[key]
            if record is not None:
                record.died = self._clock
                self.live_bytes -= record.bytes

        self._known[key] = (weakref.ref(storage, forget), record)

    @staticmethod
    def _is_live(record: _Storage, at: int) -> bool:
        return record.born <= at and (record.died is None or record.died >= at)


def _storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # sparse and opaque tensors have none
        return None


def _group(records: Iterable[_Storage]) -> tuple[tuple[str, int, int], ...]:
    groups: dict[str, tuple[int, int]] = {}
    for record in records:
        number, size = groups.get(record.label, (0, 0))
        groups[record.label] = (number + 1, size + record.bytes)
    rows = [(label, number, size) for label, (number, size) in groups.items()]
    return tuple(sorted(rows, key=lambda row: -row[2]))
