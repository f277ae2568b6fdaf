"""Model FLOPs utilisation: one division, and the refusal to call an impossible result a number."""

from __future__ import annotations

import math


def mfu(
    flops: float | None, seconds: float | None, peak_flops_per_s: float | None, devices: float | None
) -> float | None:
    """Share of the devices' peak that `flops` in `seconds` come to (Chowdhery et al. 2022, appendix B).

    Args:
        flops: model FLOPs of the whole job (hardware FLOPs give HFU instead).
        seconds: the time they took, seconds.
        peak_flops_per_s: dense peak of one device, FLOP/s.
        devices: number of devices.

    Returns:
        A share between 0 and 1. None where an input is missing, not finite or not positive, and where the share would
        exceed 1: more than the peak means that an input is wrong (see `is_above_peak`), never that a chip is fast.
    """
    share = raw_share(flops, seconds, peak_flops_per_s, devices)
    return None if share is None or share > 1.0 else share


def is_above_peak(
    flops: float | None, seconds: float | None, peak_flops_per_s: float | None, devices: float | None
) -> bool:
    """Whether the inputs say more FLOP/s than the devices can do, so that one of them must be wrong."""
    share = raw_share(flops, seconds, peak_flops_per_s, devices)
    return share is not None and share > 1.0


def raw_share(
    flops: float | None, seconds: float | None, peak_flops_per_s: float | None, devices: float | None
) -> float | None:
    """flops ÷ (seconds × peak × devices) without the refusal; None where an input is missing or not positive."""
    if flops is None or seconds is None or peak_flops_per_s is None or devices is None:
        return None
    below = seconds * peak_flops_per_s * devices
    if not (math.isfinite(flops) and math.isfinite(below)) or flops < 0 or below <= 0:
        return None
    return flops / below
