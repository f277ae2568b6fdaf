"""Why a tool's own MFU or TFLOP/s are not the exact ones: which FLOPs it counts, and which peak it divides by.

A claim is taken apart where the log prints both figures: TFLOP/s over the exact FLOP/s tell what is counted, TFLOP/s
over MFU the peak. Where it prints MFU alone, the pairs of a count and a peak are tried that tools are known to use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from effprof.analysis.model import Conventions
from effprof.runlog.importers.base import ForeignLog
from effprof.workload.architecture import Architecture

SAME = 0.02  # a claim this near to a figure is taken to be it
_INDISTINCT = 0.003  # counts this near to the nearest fit as well as that one
# Dense bf16 peaks in TFLOP/s that tools divide by whatever the card, or where they do not know the card:
# nanoGPT's `estimate_mfu` and torchtitan's `get_peak_flops` (A100), nanochat's `base_train.py` (H100).
_FIXED_PEAKS = {"an A100's": 312.0, "an H100's": 989.4}
_ALL_EXPERTS = ", all experts instead of the active ones"
_ANOTHER_FORWARD = ", and a third more: another forward pass, of recomputation or a reference model, counted as work"


@dataclass(frozen=True)
class _Count:
    """A way of counting: one of effprof's conventions, what it adds to that in words, and its FLOPs per token."""

    convention: str
    flops_per_token: float
    addition: str = ""


def explain(
    log: ForeignLog,
    architecture: Architecture,
    conventions: Conventions,
    exact_flops_per_s: float | None,
    peak: float | None,
) -> str | None:
    """In one sentence what the tool claims, what is exact and what makes the difference.

    Args:
        exact_flops_per_s: of one device, by the exact convention.
        peak: dense peak of one device in FLOP/s.

    Returns:
        None where the log claims nothing that can be compared, or where every claim is the exact figure.
    """
    tflops, mfu = claimed_median(log, "tflops_per_device"), claimed_median(log, "mfu")
    exact = conventions.exact.flops_per_token
    if exact_flops_per_s is None or exact is None:
        return None
    claimed: list[str] = []
    reasons: list[str] = []
    if mfu is not None and peak is not None and _differ(mfu, exact_flops_per_s / peak):
        claimed.append(f"{mfu:.1%} (exact: {exact_flops_per_s / peak:.1%})")
    if tflops is not None and _differ(tflops * 1e12, exact_flops_per_s):
        shares = f" = {tflops * 1e12 / peak:.1%} of the peak" if peak is not None and mfu is None else ""
        claimed.append(f"{tflops:.4g} TFLOP/s per device{shares} (exact: {exact_flops_per_s / 1e12:.4g})")
    counts = _counts(architecture, conventions)
    if tflops is not None:
        reasons += _of_counting(counts, exact, tflops * 1e12 / exact_flops_per_s)
        reasons += _of_peak(peak, tflops * 1e12 / mfu) if mfu is not None and peak is not None else []
    elif mfu is not None and peak is not None:
        reasons += _of_mfu_alone(counts, exact, mfu, exact_flops_per_s, peak)
    if not claimed:
        return None
    return f"the tool claims {' and '.join(claimed)}: {'; '.join(reasons)}"


def _counts(architecture: Architecture, conventions: Conventions) -> list[_Count]:
    """Ways of counting that tools use: effprof's conventions, and what they add to one of them."""
    named = [
        _Count(name, figures.flops_per_token)
        for name, figures in (
            ("exact", conventions.exact),
            ("megatron", conventions.megatron),
            ("palm", conventions.palm),
            ("6n", conventions.six_n),
        )
        if figures.flops_per_token is not None
    ]
    idle = 6.0 * (architecture.parameters_total - architecture.parameters_active)
    with_experts = [_Count(each.convention, each.flops_per_token + idle, _ALL_EXPERTS) for each in named if idle > 0]
    again = [_Count(each.convention, each.flops_per_token * 4 / 3, _ANOTHER_FORWARD) for each in named]
    return [*named, *with_experts, *again]


def _of_counting(counts: list[_Count], exact: float, ratio: float) -> list[str]:
    """What `ratio` times the exact FLOPs are; nothing where they are the exact ones."""
    if not _differ(ratio, 1.0):
        return []
    fitting = _fitting(counts, ratio * exact)
    if fitting:
        return [f"it counts {ratio:.3f} × the exact FLOPs, as {fitting}"]
    return [
        f"it counts {ratio:.3f} × the exact FLOPs, as no known convention does: padded vocabulary, recomputation of a "
        "part, another model, length or number of devices"
    ]


def _of_peak(peak: float, used: float) -> list[str]:
    if not _differ(used, peak):
        return []
    words = f"it divides by {used / 1e12:.4g} TFLOP/s, the dense peak is {peak / 1e12:.4g}"
    if not _differ(used, 2 * peak):
        return [f"{words}: it takes the rate with structured sparsity"]
    whose = next((name for name, tflops in _FIXED_PEAKS.items() if not _differ(used, tflops * 1e12)), None)
    return [f"{words}: it takes {whose}" if whose else words]


def _of_mfu_alone(counts: list[_Count], exact: float, mfu: float, exact_flops_per_s: float, peak: float) -> list[str]:
    """The count and the peak that together make the claim; the device's own peak is tried first."""
    peaks = [peak, *(tflops * 1e12 for tflops in _FIXED_PEAKS.values() if _differ(tflops * 1e12, peak)), 2 * peak]
    for used in peaks:
        ratio = mfu * used / exact_flops_per_s
        fitting = _fitting(counts, ratio * exact)
        if fitting:
            return [f"that fits {ratio:.3f} × the exact FLOPs, as {fitting}", *_of_peak(peak, used)]
    return ["the log does not tell from what FLOPs and which peak, and no known pair of them fits"]


def _fitting(counts: list[_Count], flops_per_token: float) -> str:
    """The nearest way of counting, with another convention that fits as well; empty where none is near."""

    def apart(count: _Count) -> float:
        return abs(count.flops_per_token / flops_per_token - 1)

    nearest = min(counts, key=apart)
    if apart(nearest) > SAME:
        return ""
    alike = [
        each for each in counts if each.addition == nearest.addition and apart(each) <= apart(nearest) + _INDISTINCT
    ]
    names = [each.convention for each in sorted(alike, key=apart)[:2]]
    subject = f"the conventions {' and '.join(names)} do" if len(names) > 1 else f"the convention {names[0]} does"
    return f"{subject}{nearest.addition}"


def _differ(one: float, another: float) -> bool:
    return abs(one / another - 1) > SAME


def claimed_median(log: ForeignLog, name: str) -> float | None:
    """Median of what the log prints; what is not above zero is how tools say "not known"."""
    values = log.columns.get(name)
    known = values[np.isfinite(values) & (values > 0)] if values is not None else np.array([])
    return float(np.median(known)) if len(known) else None
