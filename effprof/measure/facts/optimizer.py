"""Facts of the optimizers that step the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from effprof.measure.facts.read import dtype_name, read_facts, shares

# Bits of a state element where the optimizer's class says it and its tensors (packed, wrapped) may not.
_BITS_IN_NAME = {"8bit": 8, "4bit": 4, "fp8": 8}


def optimizer_facts(optimizers: Sequence[Any]) -> dict[str, Any]:
    """Settings of the optimizers, known before the first step; None among them is passed over."""
    known = [unwrapped(optimizer) for optimizer in optimizers if optimizer is not None]
    return read_facts(_READERS, known) if known else {}


def state_facts(optimizers: Sequence[Any]) -> dict[str, Any]:
    """What is known only once there are states: after the first step."""
    known = [unwrapped(optimizer) for optimizer in optimizers if optimizer is not None]
    return read_facts(_STATE_READERS, known) if known else {}


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside a framework's wrapper (Lightning's, accelerate's, DeepSpeed's)."""
    for _ in range(4):
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        if inner is None or not hasattr(inner, "param_groups"):
            break
        optimizer = inner
    return optimizer


def _option(name: str) -> Any:
    def read(optimizers: list[Any]) -> bool | None:
        groups = optimizers[0].param_groups
        values = {group.get(name) for group in groups if name in group}
        return None if not values or values == {None} else bool(all(values))

    return read


def _can_fuse(optimizers: list[Any]) -> bool:
    return "fused" in inspect.signature(type(optimizers[0]).__init__).parameters


def _package(optimizer: Any) -> str:
    return type(optimizer).__module__.partition(".")[0]


def _largest(name: str) -> Any:
    def read(optimizers: list[Any]) -> float | None:
        values = [float(group[name]) for group in optimizers[0].param_groups if group.get(name) is not None]
        return max(values) if values else None

    return read


def _learning_rates(optimizers: list[Any]) -> list[float]:
    # a learning rate on a device would have to be waited for
    found = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    return list(dict.fromkeys(float(rate) for rate in found if getattr(rate, "device", None) is None))


def _paged(optimizers: list[Any]) -> bool | None:
    optimizer = optimizers[0]
    declared = getattr(optimizer, "is_paged", None)
    return declared if declared is not None else True if "Paged" in type(optimizer).__name__ else None


def _bits(optimizers: list[Any]) -> int | None:
    optimizer = optimizers[0]
    name = type(optimizer).__name__.lower()
    for word, bits in _BITS_IN_NAME.items():
        if word in name:
            return bits
    declared = getattr(getattr(optimizer, "args", None), "optim_bits", None)  # bitsandbytes
    if declared is not None:
        return int(declared)
    elements = _state_elements(optimizer)
    return max(elements, key=lambda key: elements[key])[1] if elements else None


def _state_dtypes(optimizers: list[Any]) -> dict[str, float] | None:
    amounts: dict[str, int] = {}
    for optimizer in optimizers:
        for (name, _), count in _state_elements(optimizer).items():
            amounts[name] = amounts.get(name, 0) + count
    return shares(amounts)


def _state_elements(optimizer: Any) -> dict[tuple[str, int], int]:
    """(dtype, bits) → elements, of states as large as a parameter; a step count is none."""
    found: dict[tuple[str, int], int] = {}
    for state in optimizer.state.values():
        for value in state.values() if isinstance(state, Mapping) else ():
            if hasattr(value, "dtype") and hasattr(value, "numel") and value.dim() > 0:
                key = (dtype_name(value.dtype), value.element_size() * 8)
                found[key] = found.get(key, 0) + value.numel()
    return found


_READERS = {
    "optimizers": lambda optimizers: [type(optimizer).__name__ for optimizer in optimizers],
    "optimizer_modules": lambda optimizers: [_package(optimizer) for optimizer in optimizers],
    "optimizer_fused": _option("fused"),
    "optimizer_foreach": _option("foreach"),
    "optimizer_capturable": _option("capturable"),
    "optimizer_can_fuse": _can_fuse,
    "optimizer_paged": _paged,
    "optimizer_groups": lambda optimizers: sum(len(optimizer.param_groups) for optimizer in optimizers),
    "optimizer_learning_rates": _learning_rates,
    "weight_decay": _largest("weight_decay"),
    "momentum": _largest("momentum"),
}
_STATE_READERS = {"optimizer_bits": _bits, "optimizer_state_dtypes": _state_dtypes}
