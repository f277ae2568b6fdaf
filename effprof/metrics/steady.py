"""Where a run's steady state begins: the one place that decides which leading steps are warm-up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A leading block may differ from the second half's median by this share before it counts as warm-up: below it the
# prefix moves the run's mean by less than what any reader acts on.
TOLERANCE = 0.02
# Step times of a run that launches ahead of the device are near zero until the queue is full, a few steps long.
MAX_LAUNCH_AHEAD_STEPS = 5


def steady_start(step_time_s: NDArray[np.float64]) -> tuple[int, str]:
    """Index of the first steady step, and the rule that found it in words.

    Only a leading prefix is ever dropped, so a slow step later in the run always counts. The prefix is the shortest
    one after which the next few steps look like the run's second half: their median is not slower than the second
    half's by more than 2 % or three standard errors, and none of them is slower than anything in the second half.
    The first step is always dropped (compilation, first batch, allocator growth), and never more than half.

    Args:
        step_time_s: step times in order, seconds, shape (steps,).

    Returns:
        (index, rule): `step_time_s[index:]` is steady; `rule` is one sentence for the report.
    """
    steps = len(step_time_s)
    if steps == 0:
        return 0, "no steps"
    if steps < 8:
        return 1, "first step dropped (fewer than 8 steps, no longer warm-up sought)"
    block = max(2, min(25, max(5, steps // 20), steps // 4))
    half = steps // 2
    tail = step_time_s[half:]
    tail_median = float(np.median(tail))
    spread = 1.4826 * float(np.median(np.abs(tail - tail_median)))  # of a normal distribution with this deviation
    slack = max(TOLERANCE * tail_median, 3 * 1.2533 * spread / block**0.5)  # 1.2533: a median's error over a mean's
    blocks = np.lib.stride_tricks.sliding_window_view(step_time_s[: half + block], block)[: half + 1]
    is_steady = (np.median(blocks, axis=1) <= tail_median + slack) & (
        blocks[:, : min(block, 5)].max(axis=1) <= float(tail.max()) + slack
    )
    is_steady[0] = False
    launched_ahead = step_time_s[: MAX_LAUNCH_AHEAD_STEPS + 1] < 0.5 * tail_median
    is_steady[: MAX_LAUNCH_AHEAD_STEPS + 1] &= ~launched_ahead[: len(is_steady)]
    candidates = np.flatnonzero(is_steady)
    if len(candidates) == 0:
        return half, f"first {half} of {steps} steps dropped (half, the most: the run never became steady before)"
    index = int(candidates[0])
    dropped = "first step" if index == 1 else f"first {index} steps"
    return index, f"{dropped} of {steps} dropped: from there {block} steps' median matches that of the second half"


def has_settled(step_time_s: NDArray[np.float64], index: int) -> bool:
    """False if `steady_start` had to stop at half of the steps without finding a steady state."""
    return len(step_time_s) < 8 or index < len(step_time_s) // 2
