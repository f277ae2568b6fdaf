"""Clocks: how far a device ran below the clock that its peak assumes, from the node's telemetry."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from effprof.analysis.steps import JobSteps, column
from effprof.runlog.reader import Attempt, NodeLog, Run

CLOCK, HIGHEST_CLOCK = "sm_clock_mhz", "sm_clock_max_mhz"
MIN_SAMPLES = 3
# A datasheet's peak is FLOPs per clock and compute unit, a power of two, times units times boost clock.
_LOWEST_BOOST, _HIGHEST_BOOST = 0.7, 1.05  # boost clock over highest clock


@dataclass(frozen=True)
class Derating:
    """Clocks of the devices during the steady steps, on average, against the one that the peak assumes."""

    share: float  # of the peak that the clocks lacked, 0 … 1
    mean_mhz: float
    peak_mhz: float
    samples: int


def measure_derating(run: Run, steps: JobSteps, peak_flops_per_s: float | None) -> Derating | None:
    """The clocks' share of the loss; None where they, their highest value or the device's units are not recorded."""
    units = run.attempts[-1].ranks[0].header.device.get("compute_units")
    if not peak_flops_per_s or not isinstance(units, int) or units <= 0:
        return None
    values: list[float] = []
    highest = 0.0
    for place, attempt in enumerate(run.attempts):
        begins, ends = _steady_window(attempt, steps, place)
        for node in attempt.nodes:
            for sample in node.samples:
                found = [value for name, value in sample.values.items() if name.endswith(f".{HIGHEST_CLOCK}") and value]
                highest = max([highest, *found])
                if begins <= _wall(node, sample.monotonic_ns) <= ends:
                    values += [float(v) for name, v in sample.values.items() if name.endswith(f".{CLOCK}") and v]
    if len(values) < MIN_SAMPLES or highest <= 0:
        return None
    reference = peak_clock_mhz(peak_flops_per_s, units, highest)
    mean = float(np.mean(values))
    return Derating(max(0.0, 1 - mean / reference), mean, reference, len(values)) if reference else None


def peak_clock_mhz(peak_flops_per_s: float, units: int, highest_mhz: float) -> float | None:
    """The clock at which the peak is reached; None where the numbers don't say.

    A chip's highest clock is often above the boost clock that its datasheet counts with (H100 SXM: 1,980 and
    1,830 MHz). FLOPs per clock and unit are a power of two on every tensor core so far, so that the exponent follows
    from the highest clock and the boost clock from the exponent.
    """
    per_clock = peak_flops_per_s / (units * highest_mhz * 1e6)
    if per_clock < 1:
        return None
    exponent = math.ceil(math.log2(per_clock / _HIGHEST_BOOST))
    clock: float = peak_flops_per_s / (units * 2.0**exponent) / 1e6
    return min(clock, highest_mhz) if clock >= _LOWEST_BOOST * highest_mhz else None


def _steady_window(attempt: Attempt, steps: JobSteps, place: int) -> tuple[float, float]:
    """Unix seconds between which the attempt's steady steps lie."""
    for rank in attempt.ranks:
        rows = steps.steady_rows(place, rank.header.rank)
        if len(rows):
            ends = column(rank, "end_ns")[rows]
            return rank.wall(float(ends.min())), rank.wall(float(ends.max()))
    return math.inf, -math.inf


def _wall(node: NodeLog, monotonic_ns: float) -> float:
    return node.header.wall_s + (monotonic_ns - node.header.monotonic_ns) / 1e9
