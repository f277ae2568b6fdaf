"""Reads facts by name: one that fails, is unknown or is no plain value is left out, the others stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

Subject = TypeVar("Subject")

_NO_VALUE = object()


def read_facts(readers: Mapping[str, Callable[[Subject], Any]], subject: Subject) -> dict[str, Any]:
    """Name → what its reader finds in `subject`, as JSON has it.

    Objects of users and of many versions of libraries are read here: whatever a reader raises means "not known".
    """
    facts: dict[str, Any] = {}
    for name, reader in readers.items():
        try:
            value = plain(reader(subject))
        except Exception:
            continue
        if value is not None and value is not _NO_VALUE:
            facts[name] = value
    return facts


def plain(value: Any) -> Any:
    """The value in JSON's types; a marker that `read_facts` drops where it has none there."""
    if value is None or isinstance(value, (bool, int, str)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else _NO_VALUE
    if isinstance(value, Mapping):
        items = {str(key): plain(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not None and item is not _NO_VALUE}
    if isinstance(value, (list, tuple)):
        return [item for item in map(plain, value) if item is not _NO_VALUE]
    return _NO_VALUE


def attribute(*names: str) -> Callable[[Any], Any]:
    """A reader of the first of the attributes that the subject has."""

    def read(subject: Any) -> Any:
        return next((getattr(subject, name) for name in names if hasattr(subject, name)), None)

    return read


def class_name(value: Any) -> str | None:
    """The class of an object; None of None."""
    return None if value is None else type(value).__name__


def shares(amounts: Mapping[str, int]) -> dict[str, float] | None:
    """Each amount's share of their sum, largest first; None where there is nothing."""
    total = sum(amounts.values())
    if not total:
        return None
    return {name: amounts[name] / total for name in sorted(amounts, key=lambda name: -amounts[name])}


def dtype_name(dtype: Any) -> str:
    """A torch dtype in the words of the record: `bf16`, `fp32`, else torch's own."""
    name = str(dtype).removeprefix("torch.")
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}.get(name, name)
