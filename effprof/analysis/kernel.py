"""Profiler traces in an Analysis: the kernel account of a foreign trace, with its roofline and time account."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from effprof.analysis.model import (
    ACCOUNT_LINES,
    Account,
    Analysis,
    ConventionFigures,
    Conventions,
    DeviceGroup,
    Efficiency,
    Hardware,
    MemoryFigures,
    RankFigures,
    Rate,
    RunFacts,
    Share,
    StepCounts,
    StepTime,
    Warning,
)
from effprof.errors import EffprofError
from effprof.hardware.catalog import Accelerator, lookup
from effprof.trace.folder import is_trace_path
from effprof.trace.summary import Family, RankKernels, Split

if TYPE_CHECKING:
    from effprof.trace.account import KernelAccount

__all__ = ["analyze_traces", "is_trace_path", "to_analysis", "truncation_error"]

_FRAMEWORK = "pytorch"
_UNITS = {"memory_bytes": "totalGlobalMem", "compute_units": "numSms"}


def analyze_traces(path: str) -> tuple[Analysis, EffprofError | None]:
    """Analyse a profiler trace by itself, or a folder with one per rank.

    Returns:
        The analysis, and what to complain about afterwards: a file that is cut off is analysed as far as it goes, and
        the error says what is missing.

    Raises:
        EffprofError: nothing there, or a trace that cannot be read.
    """
    from effprof.trace.account import account_traces  # a run's own record is analysed without the trace engine

    account = account_traces(path)
    return to_analysis(account, path), truncation_error(account)


def truncation_error(account: KernelAccount) -> EffprofError | None:
    """The complaint about traces that are cut off; None where all are whole."""
    if not account.lost_bytes:
        return None
    file, lost = next(iter(account.lost_bytes.items()))
    more = f" (and {len(account.lost_bytes) - 1} more traces)" if len(account.lost_bytes) > 1 else ""
    return EffprofError(
        f"{file}: cut off, {lost:,} bytes after its last whole event are lost{more}",
        "the figures cover what comes before; record the trace again for the rest",
    )


def to_analysis(account: KernelAccount, path: str) -> Analysis:
    """An Analysis that holds what traces can tell; everything else is null, and `warnings` says why."""
    ranks = list(account.ranks.values())
    rows = {rank: _catalogue_row(account, rank) for rank in account.ranks}
    for rank, kernels in account.ranks.items():
        add_roofline(kernels, rows[rank])
    first = next(iter(rows.values()))
    return Analysis(
        run=RunFacts(
            id=path.rstrip("/").rpartition("/")[2] or path,
            path=path,
            framework=_FRAMEWORK,
            world_size=account.world_size or len(ranks),
            attempts=1,
            started_at=_iso(account.started_us),
            ended_at=_iso(account.ended_us),
            ended="completed",
            ended_reason="a profiler's trace: it covers the profiled steps only",
        ),
        efficiency=_efficiency(ranks),
        account=_mean_account(ranks),
        kernel_account={str(rank): kernels for rank, kernels in account.ranks.items()},
        memory=MemoryFigures(device_total_bytes=_device_bytes(account)),
        ranks=[
            RankFigures(
                rank=rank,
                host="",
                device=_device_name(account, rank),
                data_parallel_rank=None,
                steps=len(kernels.steps),
                step_time_s=_step_time([kernels]),
                tokens_per_s=None,
                account=to_account(kernels),
            )
            for rank, kernels in account.ranks.items()
        ],
        hardware=Hardware(
            devices=_devices(account),
            hosts=[],
            memory_bandwidth_bytes_per_s=first.memory_bandwidth_bytes_per_s if first else None,
            interconnect_bytes_per_s=first.interconnect_bytes_per_s if first else None,
        ),
        warnings=[
            *(Warning(code=problem.code, message=problem.message) for problem in account.problems),
            Warning(
                code="trace_only",
                message="a trace holds no tokens and no model: MFU and throughput need a run recorded by effprof",
            ),
            *_missing_for_mfu(account, rows),
        ],
    )


def _missing_for_mfu(account: KernelAccount, rows: Mapping[int, Accelerator | None]) -> list[Warning]:
    """What MFU, and where the device is not known the roofline too, would need."""
    message = "a profiler's trace does not tell the model's FLOPs: record the run with effprof for MFU"
    found = [Warning(code="no_flops", message=message)]
    unknown = sorted({_device_name(account, rank) for rank, row in rows.items() if row is None})
    if unknown:
        names = ", ".join(unknown)
        found.append(Warning(code="no_peak", message=f"no peak is known for {names}: kernels have no roofline"))
    return found


def to_account(kernels: Split, bubble_s: float | None = None) -> Account:
    """The time account of a window of device time, on the basis `kernel`; its lines sum to the window."""
    bubble = bubble_s if bubble_s is not None else getattr(kernels, "pipeline_bubble_s", None)
    idle = kernels.idle
    lines = {
        "step.input_wait": idle.input_wait_s,
        "step.host_to_device": kernels.memory_copy_exposed_s,
        "step.exposed_communication": kernels.communication_exposed_s - (bubble or 0.0) + idle.rank_wait_s,
        "step.host_gap": idle.host_bound_s + idle.queued_s,
        "step.other": kernels.compute_s,
        "unattributed": idle.unknown_s,
    }
    if kernels.phases is not None:
        lines["step.forward"] = kernels.phases.forward_s
        lines["step.backward"] = kernels.phases.backward_s
        lines["step.optimizer"] = kernels.phases.optimizer_s
        lines["step.other"] = kernels.phases.unknown_s
    if bubble is not None:
        lines["step.pipeline_bubble"] = bubble
    ordered = {name: lines[name] for name in ACCOUNT_LINES if name in lines}
    return Account(basis="kernel", wall_s=kernels.window_s, lines=ordered)


def add_roofline(kernels: RankKernels, row: Accelerator | None) -> None:
    """Fill in how close each family with recorded shapes comes to what the device allows."""
    if row is None:
        return
    units = kernels.matrix_units
    has_matrix_units = units is not None and units.share is not None and units.share > 0.5
    for family in kernels.kernels.values():
        family.roofline_share = _roofline_share(family, row, has_matrix_units)


def _roofline_share(family: Family, row: Accelerator, has_matrix_units: bool) -> float | None:
    """Achieved FLOP/s ÷ min(peak, bytes/s × FLOPs per byte): Williams et al., 2009, doi 10.1145/1498765.1498785."""
    flops, moved = family.flops_per_s, family.bytes_per_s
    bandwidth = row.memory_bandwidth_bytes_per_s
    if not flops or not moved or not bandwidth or not family.dtypes:
        return None
    inverse = 0.0
    for dtype, share in family.dtypes.items():
        # with TF32 allowed, products of fp32 run on the matrix units
        keys = ("tf32", "fp32") if dtype == "fp32" and has_matrix_units else (dtype,)
        rate = next((row.peak_tflops[key] for key in keys if key in row.peak_tflops), None)
        if rate is None:
            return None
        inverse += share / (rate * 1e12)
    chips = row.runtime_devices_per_chip
    return flops / min(1 / inverse / chips, bandwidth / chips * flops / moved)


def _efficiency(ranks: list[RankKernels]) -> Efficiency:
    nothing = ConventionFigures()
    steps = min((len(one.steps) for one in ranks), default=0)
    return Efficiency(
        mfu=Share(value=None),
        mfu_wall=Share(value=None),
        hfu=Share(value=None),
        conventions=Conventions(exact=nothing, megatron=nothing, palm=nothing, six_n=nothing),
        steps=StepCounts(total=steps, steady=steps),
        tokens_per_step=None,
        samples_per_step=None,
        padding_share=None,
        loss_token_share=None,
        step_time_s=_step_time(ranks),
        tokens_per_s=Rate(),
        tokens_per_s_per_device=Rate(),
        samples_per_s=Rate(),
        model_flops_per_s_per_device=Rate(),
    )


def _step_time(ranks: Iterable[RankKernels]) -> StepTime:
    """Of the profiled steps; where ranks differ, a step takes as long as on the slowest of them."""
    slowest: dict[int, float] = {}
    for one in ranks:
        for step in one.steps:
            slowest[step.step] = max(slowest.get(step.step, 0.0), step.window_s)
    if not slowest:
        return StepTime()
    times = np.array(list(slowest.values()))
    return StepTime(median=float(np.median(times)), p95=float(np.percentile(times, 95)))


def _mean_account(ranks: list[RankKernels]) -> Account:
    accounts = [to_account(one) for one in ranks]
    names = {name for one in accounts for name in one.lines}
    count = len(accounts)
    return Account(
        basis="kernel",
        wall_s=sum(one.wall_s for one in accounts) / count,
        lines={
            name: sum(one.lines.get(name, 0.0) for one in accounts) / count for name in ACCOUNT_LINES if name in names
        },
    )


def _catalogue_row(account: KernelAccount, rank: int) -> Accelerator | None:
    device = account.devices.get(rank, {})
    facts = {ours: device[theirs] for ours, theirs in _UNITS.items() if isinstance(device.get(theirs), int)}
    try:
        return lookup(str(device.get("name") or ""), **facts)  # type: ignore[arg-type]
    except EffprofError:
        return None


def _device_name(account: KernelAccount, rank: int) -> str:
    return str(account.devices.get(rank, {}).get("name") or "unknown device")


def _devices(account: KernelAccount) -> list[DeviceGroup]:
    groups: dict[str, DeviceGroup] = {}
    for rank in account.ranks:
        name = _device_name(account, rank)
        memory = account.devices.get(rank, {}).get("totalGlobalMem")
        group = groups.setdefault(
            name,
            DeviceGroup(name=name, type="unknown", count=0, memory_bytes=memory if isinstance(memory, int) else None),
        )
        group.count += 1
    return list(groups.values())


def _device_bytes(account: KernelAccount) -> int | None:
    found = [device.get("totalGlobalMem") for device in account.devices.values()]
    return next((memory for memory in found if isinstance(memory, int)), None)


def _iso(unix_us: float) -> str:
    """ISO 8601 of Unix µs; empty for a clock that is none (older traces count from the host's start)."""
    if not 1e15 < unix_us < 1e16:
        return ""
    return datetime.fromtimestamp(unix_us / 1e6, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
