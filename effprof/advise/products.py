"""What the matrix products take of a step, and how far they are from what the device can do."""

from __future__ import annotations

from effprof.advise.facts import KERNEL_WINDOW, kernel_share, step_share
from effprof.advise.rule import Missing
from effprof.analysis.model import Analysis
from effprof.analysis.operators import PRODUCTS


def product_share(run: Analysis) -> float:
    """Share of the step in matrix products, 0 … 1: a kernel window's, else executed FLOPs at the full peak.

    The latter is a lower bound, as products seldom reach the peak; without either it raises `Missing`.
    """
    if run.kernel_account:
        return kernel_share(run, *PRODUCTS)
    if run.operators is not None:
        return run.operators.product_share
    return peak_share(run)


def peak_share(run: Analysis) -> float:
    """Executed FLOP/s ÷ peak, recompute included where it is known."""
    share = run.efficiency.hfu.value or run.efficiency.mfu.value
    if share is None:
        raise Missing("the share of the device's peak", f"{KERNEL_WINDOW}, on a device whose peak is known")
    return min(1.0, share)


def model_share(run: Analysis) -> float:
    """Share of the step in the forward and backward pass, 0 … 1."""
    return step_share(run, "step.forward") + step_share(run, "step.backward")


def multiplies_in(run: Analysis, dtype: str) -> bool:
    """Whether most FLOPs of the run are in a dtype, by the count's own figures."""
    shares = run.run.flops.get("by_dtype") or {}
    if not shares:
        raise Missing("the dtype of the matrix products", "train with EfficiencyCallback of this version")
    return float(shares.get(dtype, 0.0)) > 0.5
