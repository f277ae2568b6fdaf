"""What a CPU's operators take beside the data: figures that say how a training would scale."""

from __future__ import annotations

import numpy as np

from effprof.analysis.model import Account, OperatorFigures
from effprof.runlog.reader import Run

PRODUCTS = ("gemm", "grouped_gemm", "attention", "convolution")


def operator_figures(run: Run, account: Account) -> OperatorFigures | None:
    """The operators of the last attempt's kernel windows, beside the account's steps; None without such a window.

    The windows' steps are slowed by the profiler: only shares of their operators' time are taken from them, and laid
    on the time that the other steps spent in forward and backward.
    """
    windows = [line for rank in run.attempts[-1].ranks for line in rank.kernels if line.operators and line.steps]
    lines = account.lines
    steps_s = sum(seconds for name, seconds in lines.items() if name.startswith("step."))
    own_s = sum(line.operators.get("own_s", 0.0) for line in windows)
    if not windows or own_s <= 0 or steps_s <= 0 or "step.host_gap" not in lines:
        return None
    computing_s = lines["step.forward"] + lines["step.backward"]
    fixed_s = sum(line.operators.get("fixed_s", 0.0) for line in windows)
    products_s = sum(line.families.get(name, 0.0) for line in windows for name in PRODUCTS)
    return OperatorFigures(
        per_step=float(np.mean([line.operators.get("count", 0.0) / line.steps for line in windows])),
        dispatch_s=float(np.median([line.operators.get("dispatch_s", 0.0) for line in windows])),
        fixed_share=(lines["step.host_gap"] + fixed_s / own_s * computing_s) / steps_s,
        product_share=min(1.0, products_s / own_s) * computing_s / steps_s,
    )
