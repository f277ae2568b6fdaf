"""One file per model family, found by its `MODEL_TYPES`: a new architecture is one new file and one test."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache

from effprof.workload.architecture import Architecture, Config


@cache
def builders() -> dict[str, Callable[[Config], Architecture]]:
    """`model_type` → function that builds its architecture, from every file of this folder."""
    found: dict[str, Callable[[Config], Architecture]] = {}
    for file in pkgutil.iter_modules(__path__):
        if file.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{file.name}")
        for model_type in module.MODEL_TYPES:
            found[model_type] = module.build
    return found
