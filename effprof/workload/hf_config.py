"""Finds the Hugging Face model inside a module, and the config that the closed form is made from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from effprof.errors import EffprofError
from effprof.workload.config_file import read_config_file


@dataclass(frozen=True)
class FoundConfig:
    """A config and the module it describes (None where the user gave the config).

    Attributes:
        values: the config as plain values, with the class of the model under `architectures`.
        owner: the outermost module that the config belongs to.
        is_whole: whether every parameter of the module that was searched lies in `owner`.
    """

    values: dict[str, Any]
    owner: nn.Module | None
    is_whole: bool


def find_config(module: nn.Module, given: Any = None) -> FoundConfig | None:
    """The config of the model inside `module`; None where there is none.

    Args:
        given: the user's own: a mapping, a transformers config, or the path of a config.json.

    Raises:
        EffprofError: `given` cannot be read.
    """
    roots = _roots(module)
    if given is not None:
        values = read_config(given)
        if not values.get("architectures") and len(roots) == 1:
            values["architectures"] = [_class_name(roots[0])]
        return FoundConfig(values, roots[0] if len(roots) == 1 else None, is_whole=True)
    if len(roots) != 1:
        return None
    owner = roots[0]
    values = read_config(owner.config)
    # the class that runs decides the head, not the one that a checkpoint was saved from
    values["architectures"] = [_class_name(owner)]
    inside = {id(parameter) for parameter in owner.parameters()}
    return FoundConfig(values, owner, all(id(parameter) in inside for parameter in module.parameters()))


def read_config(source: Any) -> dict[str, Any]:
    """A config as plain values, from a mapping, a transformers config, or the path of a config.json or its folder."""
    if isinstance(source, Mapping):
        return dict(source)
    if hasattr(source, "to_dict"):
        return dict(source.to_dict())
    if isinstance(source, (str, os.PathLike)):
        return read_config_file(os.fspath(source))
    raise EffprofError(
        f"a model config cannot be read from {type(source).__name__}", "Give a config.json or a mapping."
    )


def _roots(module: nn.Module) -> list[Any]:
    """Outermost modules with a config of their own; parts of an outer model are not looked at again."""
    roots: list[Any] = []
    taken: list[str] = []
    for name, part in module.named_modules():
        if any(name.startswith(prefix) for prefix in taken):
            continue
        config = getattr(part, "config", None)
        if hasattr(config, "to_dict") and getattr(config, "model_type", None):
            roots.append(part)
            taken.append(f"{name}." if name else "")
    return roots


def _class_name(owner: Any) -> str:
    """The transformers class of `owner`, looking through adapters that wrap it."""
    for part in owner.modules():
        if any(kind.__module__.startswith("transformers.models.") for kind in type(part).__mro__):
            kind = next(kind for kind in type(part).__mro__ if kind.__module__.startswith("transformers.models."))
            return str(kind.__name__)
    return type(owner).__name__
