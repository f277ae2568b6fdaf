"""Brings small device tensors to the host without ever waiting: copied into pinned memory now, read when done."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Tag = TypeVar("Tag")
Arrays = list[npt.NDArray[Any]]

# A host that runs this many copies ahead of its device has lost it.
MAX_PENDING = 1024


class LateCopies(Generic[Tag]):
    """A queue of copies from device to host, answered in the order they were submitted.

    One thread may submit while another polls.

    Buffers and events are pooled: page-locking memory is slow and can make the device wait. A tensor on the host is
    passed through as it is.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Tag, list[torch.Tensor], Any]] = deque()
        self._buffers: dict[tuple[torch.Size, torch.dtype], list[torch.Tensor]] = {}
        self._events: dict[torch.device, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def submit(self, tag: Tag, tensors: list[torch.Tensor]) -> None:
        """Copy `tensors` (all on one device) to the host, stream-ordered behind the work that makes them.

        Raises:
            RuntimeError: too many copies are pending, or the device has no events.
        """
        device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
        if device is None:
            self._pending.append((tag, [tensor.detach() for tensor in tensors], None))
            return
        if len(self._pending) >= MAX_PENDING:
            raise RuntimeError(f"{MAX_PENDING} copies are pending")
        buffers = [self._buffer(tensor) for tensor in tensors]
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor.detach(), non_blocking=True)
        module = torch.get_device_module(device)
        pool = self._events.setdefault(device, [])
        event = pool.pop() if pool else _new_event(module)
        event.record(module.current_stream(device)) if hasattr(module, "current_stream") else event.record()
        self._pending.append((tag, buffers, (device, event)))

    def poll(self, wait: bool = False) -> list[tuple[Tag, Arrays]]:
        """What has arrived since the last call, oldest first; with `wait` everything, for the end of a run only."""
        arrived: list[tuple[Tag, Arrays]] = []
        while self._pending:
            tag, buffers, mark = self._pending[0]
            if mark is not None:
                device, event = mark
                # a polling thread's own current device would get a context on its first call
                with torch.get_device_module(device).device(device) if device.type == "cuda" else nullcontext():
                    if wait:
                        event.synchronize()
                    elif not event.query():
                        break
                self._events[device].append(event)
                arrays = [np.array(buffer.numpy()) for buffer in buffers]
                for buffer in buffers:
                    self._buffers[buffer.shape, buffer.dtype].append(buffer)
            else:
                arrays = [buffer.numpy() for buffer in buffers]
            arrived.append((tag, arrays))
            self._pending.popleft()
        return arrived

    def abandon(self) -> list[Tag]:
        """Give up what is pending; returns its tags."""
        tags = [tag for tag, _, _ in self._pending]
        self._pending.clear()
        return tags

    def _buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        pool = self._buffers.setdefault((tensor.shape, tensor.dtype), [])
        if pool:
            return pool.pop()
        try:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        except RuntimeError:  # a device whose memory the host shares has nothing to pin
            return torch.empty(tensor.shape, dtype=tensor.dtype)


def _new_event(module: Any) -> Any:
    if hasattr(module, "Event"):
        return module.Event()
    if hasattr(module, "event"):  # mps
        return module.event.Event()
    raise RuntimeError(f"{module.__name__} has no events")
