"""Kernel windows: what the recorded steps say about where the others' time went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from effprof.analysis.kernel import add_roofline
from effprof.analysis.model import Warning
from effprof.analysis.steps import column
from effprof.errors import EffprofError
from effprof.hardware.catalog import Accelerator, lookup
from effprof.runlog.reader import RankLog, Run
from effprof.runlog.schema import STEP_PHASES, Kernels
from effprof.trace.summary import RankKernels

Array = NDArray[np.float64]


@dataclass(frozen=True)
class WindowShares:
    """Shares that stand for steps that were not recorded.

    Attributes:
        lines: line of a step → its share of the step.
        by_phase: host phase → line → share of the phase; empty where the device runs on while the host is elsewhere.
    """

    lines: dict[str, float]
    by_phase: dict[str, dict[str, float]]


def window_shares(run: Run) -> dict[tuple[int, int], WindowShares]:
    """(place of the attempt, rank) → shares from its own windows, else from its attempt's, else from the run's.

    Empty where nothing was recorded.
    """
    everything = [line for attempt in run.attempts for rank in attempt.ranks for line in rank.kernels]
    if not everything:
        return {}
    shares = {}
    for place, attempt in enumerate(run.attempts):
        nearby = [line for rank in attempt.ranks for line in rank.kernels] or everything
        for rank in attempt.ranks:
            shares[place, rank.header.rank] = _shares(rank.kernels or nearby)
    return shares


def is_profiled(rank: RankLog) -> NDArray[np.bool_]:
    """Which of the rank's steps a kernel window slowed."""
    found: NDArray[np.bool_] = np.nan_to_num(column(rank, "profiled")) > 0
    return found


def book_profiling(rank: RankLog, phases: dict[str, Array]) -> None:
    """Move what profiled steps took beyond the usual step from their phases to `effprof`, in place.

    Args:
        phases: phase → seconds of each step.
    """
    slowed = is_profiled(rank)
    seconds = sum((phases[name] for name in STEP_PHASES), np.zeros(rank.steps))
    if not slowed.any() or slowed.all():
        return
    usual = float(np.median(seconds[~slowed]))
    excess = np.where(slowed & (seconds > usual), 1 - usual / np.where(seconds > 0, seconds, 1.0), 0.0)
    for name in STEP_PHASES:
        taken = phases[name] * excess
        phases[name] = phases[name] - taken
        phases["effprof"] = phases["effprof"] + taken


def window_families(run: Run) -> dict[str, float]:
    """Kernel family → seconds of device time in the last attempt's windows, over its ranks."""
    families: dict[str, float] = {}
    for attempt in run.attempts[-1:]:
        for rank in attempt.ranks:
            for line in rank.kernels:
                for name, seconds in line.families.items():
                    families[name] = families.get(name, 0.0) + seconds
    return families


def window_accounts(run: Run) -> tuple[dict[str, RankKernels], list[Warning]]:
    """`kernel_account`: rank → the account of its latest window on a device, and what those say of themselves."""
    accounts: dict[str, RankKernels] = {}
    warnings = []
    for attempt in run.attempts:
        for rank in attempt.ranks:
            for line in rank.kernels:
                warnings += [Warning(code="kernel_window", message=message) for message in line.problems]
                if line.account:
                    try:
                        found = msgspec.convert(line.account, RankKernels)
                    except msgspec.ValidationError as error:
                        warnings.append(Warning(code="kernel_window", message=f"a window can't be read: {error}"))
                        continue
                    add_roofline(found, _catalogue_row(rank))
                    accounts[str(rank.header.rank)] = found
    return accounts, warnings


def _catalogue_row(rank: RankLog) -> Accelerator | None:
    device = rank.header.device
    facts = {name: device[name] for name in ("memory_bytes", "compute_units") if isinstance(device.get(name), int)}
    try:
        return lookup(str(device.get("name") or ""), **facts)
    except EffprofError:
        return None


@dataclass(frozen=True)
class MatrixWork:
    """What the kernels of one matrix family achieved where their shapes are recorded, means over their time.

    Attributes:
        flops_per_s: executed FLOP/s.
        bytes_per_s: operands and result once: a lower bound.
        roofline_share: achieved FLOP/s over what peak and memory bandwidth allow.
    """

    flops_per_s: float
    bytes_per_s: float
    roofline_share: float


def matrix_work(accounts: Mapping[str, RankKernels]) -> dict[str, MatrixWork]:
    """Family → its work over the ranks' kernel windows; families without shapes or roofline are left out."""
    sums: dict[str, Array] = {}
    for account in accounts.values():
        for name, family in account.kernels.items():
            figures = (family.flops_per_s, family.bytes_per_s, family.roofline_share)
            if family.shaped_s and None not in figures:
                weighted = family.shaped_s * np.array([1.0, *figures], np.float64)
                sums[name] = sums.get(name, np.zeros(4)) + weighted
    return {name: MatrixWork(*(total[1:] / total[0]).tolist()) for name, total in sums.items()}


def _shares(windows: Iterable[Kernels]) -> WindowShares:
    lines: dict[str, float] = {}
    by_phase: dict[str, dict[str, float]] = {}
    for window in windows:
        _add(lines, window.lines)
        for phase, found in window.by_phase.items():
            _add(by_phase.setdefault(phase, {}), found)
    return WindowShares(_normalise(lines), {phase: _normalise(found) for phase, found in by_phase.items()})


def _add(total: dict[str, float], lines: Mapping[str, float]) -> None:
    for name, seconds in lines.items():
        if name.startswith("step."):  # an evaluation inside the window is no part of a step
            total[name] = total.get(name, 0.0) + seconds


def _normalise(lines: dict[str, float]) -> dict[str, float]:
    whole = sum(lines.values())
    return {name: seconds / whole for name, seconds in lines.items()} if whole > 0 else {}
