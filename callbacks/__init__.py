"""How effprof attaches to a framework's trainer: one file each, imported only when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effprof.callbacks.hooks import attach
    from effprof.callbacks.lightning import EfficiencyCallback

__all__ = ["EfficiencyCallback", "attach"]


def __getattr__(name: str) -> Any:
    if name == "EfficiencyCallback":
        from effprof.callbacks.lightning import EfficiencyCallback

        return EfficiencyCallback
    if name == "attach":
        from effprof.callbacks.hooks import attach

        return attach
    raise AttributeError(f"module 'effprof.callbacks' has no attribute {name!r}")
