"""effprof measures how much of an accelerator a training run uses, and what would use more of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effprof.measure.profiler import StepProfiler

__version__ = "0.1.0"
__all__ = ["StepProfiler", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the profiler only when asked for, so that `import effprof` stays free of torch."""
    if name == "StepProfiler":
        from effprof.measure.profiler import StepProfiler

        return StepProfiler
    raise AttributeError(f"module 'effprof' has no attribute {name!r}")
