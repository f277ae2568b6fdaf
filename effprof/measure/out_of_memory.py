"""What filled the memory when a training ran out of it, gathered after the failure from what is cheap to know."""

from __future__ import annotations

import gc
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import torch

_LARGEST = 8
# CPU: "can't allocate memory: you tried to allocate 123 bytes"; CUDA: "Tried to allocate 2.00 GiB"
_REQUEST = re.compile(r"tried to allocate ([0-9.]+) ?([KMGT]i?B|bytes?)", re.IGNORECASE)
_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "b": 1}
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a device or the host ran out of memory, however it was said, also as the cause of another error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        text = str(error).lower()
        if isinstance(error, (RuntimeError, OSError)) and any(message in text for message in _MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


def requested_bytes(message: str) -> int | None:
    """The size of the allocation that failed, where the message tells."""
    found = _REQUEST.search(message)
    if found is None:
        return None
    return round(float(found.group(1)) * _UNITS[found.group(2)[0].lower()])


def largest_tensors(except_for: set[int], device_type: str) -> list[list[Any]]:
    """[shape and dtype, number, bytes] of the largest tensors that Python still holds on a kind of device.

    Tensors that only autograd keeps are not among them.

    Args:
        except_for: addresses of storages to leave out (parameters, gradients, optimizer state).
    """
    import torch

    numbers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seen = set(except_for)
    for each in gc.get_objects():
        # by type: asking a lazy proxy for its class would wake it
        if not issubclass(type(each), torch.Tensor):
            continue
        try:
            storage = each.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in seen or each.device.type != device_type:
                continue
            seen.add(key)
            label = f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}"
        except Exception:  # fake, sparse and half-made tensors have no storage to speak of
            continue
        numbers[label] += 1
        sizes[label] += size
    return [[label, numbers[label], size] for label, size in sizes.most_common(_LARGEST)]


def host_memory() -> dict[str, int]:
    """Total and available memory of this host, in bytes."""
    memory = psutil.virtual_memory()
    return {"host_total_bytes": int(memory.total), "host_available_bytes": int(memory.available)}


def storages_of(tensors: Any) -> set[int]:
    """Addresses of the storages under some tensors."""
    import torch
    from torch.utils._pytree import tree_leaves

    found: set[int] = set()
    for tensor in tree_leaves(tensors):
        if isinstance(tensor, torch.Tensor):
            try:
                found.add(tensor.untyped_storage()._cdata)
            except (RuntimeError, NotImplementedError):
                continue
    return found


def account_of_failure(
    error: BaseException, module: torch.nn.Module | None, optimizers: list[Any], device_type: str
) -> dict[str, Any]:
    """States, the failed request and the largest tensors still held, for the log's last lines."""
    from effprof.measure.detection import state_bytes

    facts: dict[str, Any] = {"requested_bytes": requested_bytes(_whole_message(error)), **host_memory()}
    held: set[int] = set()
    if module is not None:
        facts.update(state_bytes(module, optimizers))
        facts["has_gradients"] = any(parameter.grad is not None for parameter in module.parameters())
        held |= storages_of([(parameter, parameter.grad) for parameter in module.parameters()])
        held |= storages_of([dict(state) for each in optimizers for state in each.state.values()])
    facts["largest"] = largest_tensors(held, device_type)
    return facts


def _whole_message(error: BaseException) -> str:
    parts = []
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        parts.append(str(each))
        each = each.__cause__ or each.__context__
    return "\n".join(parts)
