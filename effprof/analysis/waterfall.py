"""The waterfall: from the dense peak over the whole wall clock down to what was used of it, every loss a bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from effprof.analysis.clocks import Derating
from effprof.analysis.model import Account, Bar, Efficiency, Evidence
from effprof.analysis.windows import MatrixWork

# Time in which the device computes; the other lines of the account are bars of their own.
COMPUTE_LINES = ("step.forward", "step.backward", "step.optimizer")
# Where the device runs on while the host is elsewhere, any line of a step may hide work.
STEP_LINES = (*COMPUTE_LINES, "step.other", "step.host_to_device", "step.input_wait", "step.generation")
MATRIX_FAMILIES = ("gemm", "grouped_gemm", "attention", "convolution")
# Families whose kernels do so little per byte that memory bandwidth is all that they can use.
MEMORY_BOUND_FAMILIES = ("normalisation", "elementwise", "reduction", "embedding", "memory")
NOT_SPLIT = "forward_backward"
LOW_EFFICIENCY = "low_efficiency_gemm"
MEMORY_BOUND_MATMULS = "memory_bound_gemm"
_TINY = 1e-12
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Facts:
    """What the bars are made from, beside the account.

    Attributes:
        recompute_share: recomputed over model FLOPs; None where unknown.
        families: family → seconds of device time in the kernel windows, nothing counted twice; empty without one.
        derating: how far clocks lay below the one that the peak assumes; None where not recorded.
        matrix_work: family → what its kernels achieved where their shapes are recorded.
    """

    recompute_share: float | None = None
    families: Mapping[str, float] = field(default_factory=dict)
    derating: Derating | None = None
    matrix_work: Mapping[str, MatrixWork] = field(default_factory=dict)


def make_waterfall(account: Account, efficiency: Efficiency, facts: Facts) -> list[Bar]:
    """Bars whose shares sum to 1 − `mfu_wall`; empty where there is no `mfu_wall`, or one that the steps can't hold.

    A share is of peak × devices × wall clock. Time in which the device did not compute is lost in full. Of the time
    in which it did, the model's FLOPs at peak are what was used; recomputed and padded FLOPs at peak are bars of their
    own (HFU − MFU), and so is what the clocks lacked. The rest is split by kernel family where a kernel window was
    recorded, and is one bar where none was.
    """
    used = efficiency.mfu_wall.value
    if used is None or account.wall_s <= 0:
        return []
    wall_s = account.wall_s
    compute = _compute_lines(account, used)
    if compute is None:
        return []
    bars = [
        _bar(name.removeprefix("step."), seconds / wall_s, wall_s, [_seconds(f"account.lines.{name}", seconds)])
        for name, seconds in account.lines.items()
        if name not in compute and seconds > 0
    ]
    inside = sum(account.lines.get(name, 0.0) for name in compute) / wall_s
    rest = max(0.0, inside - used)
    inner: list[Bar] = []
    for bar in (
        *_redundant_bars(efficiency, facts, used, wall_s),
        *_clock_bars(facts, inside, wall_s),
        *_family_bars(account, compute, facts, wall_s),
        *_matmul_bars(inside, efficiency, facts, wall_s),
    ):
        share = min(bar.share, rest)  # FLOPs and clocks are estimates: together they can't take more than there is
        rest -= share
        if share > _TINY:
            inner.append(_bar(bar.name, share, wall_s, bar.evidence))
    inner.append(_rest_bar(rest, inside, used, wall_s, facts))
    ordered = sorted(bars, key=lambda bar: -bar.share) + inner
    return _settle(ordered, used, wall_s)


def _compute_lines(account: Account, used: float) -> tuple[str, ...] | None:
    """Lines that hold the device's work: host phases of an asynchronous device may not hold enough time for it.

    None where even the whole steps don't: then the peak or the FLOPs are wrong.
    """
    for lines in (COMPUTE_LINES, STEP_LINES, tuple(name for name in account.lines if name.startswith("step."))):
        if sum(account.lines.get(name, 0.0) for name in lines) >= used * account.wall_s * (1 - _ROUNDING):
            return lines
    return None


def _redundant_bars(efficiency: Efficiency, facts: Facts, used: float, wall_s: float) -> list[Bar]:
    if not facts.recompute_share and efficiency.hfu.value is None:
        return []
    recompute = facts.recompute_share or 0.0
    bars = []
    if recompute > 0:
        evidence = [
            Evidence(metric="run.flops.recompute_share", value=recompute, unit="of model FLOPs"),
            Evidence(metric="efficiency.mfu_wall", value=used, unit="share"),
        ]
        bars.append(_bar("recompute", used * recompute, wall_s, evidence))
    mfu, hfu = efficiency.mfu.value, efficiency.hfu.value
    if mfu and hfu:
        padded = used * max(0.0, hfu / mfu - 1 - recompute)
        evidence = [
            Evidence(metric="efficiency.padding_share", value=efficiency.padding_share, unit="of positions"),
            Evidence(metric="efficiency.hfu", value=hfu, unit="share"),
            Evidence(metric="efficiency.mfu", value=mfu, unit="share"),
        ]
        bars.append(_bar("padding", padded, wall_s, evidence))
    return bars


def _clock_bars(facts: Facts, inside: float, wall_s: float) -> list[Bar]:
    derating = facts.derating
    if derating is None or derating.share <= 0:
        return []
    evidence = [
        Evidence(metric="sm_clock_mhz", value=derating.mean_mhz, unit="MHz", threshold=derating.peak_mhz),
        Evidence(metric="telemetry samples in steady steps", value=float(derating.samples), unit="samples"),
    ]
    return [_bar("clock_derating", inside * derating.share, wall_s, evidence)]


def _family_bars(account: Account, compute: tuple[str, ...], facts: Facts, wall_s: float) -> list[Bar]:
    """Non-matmul time, by kernel family; the optimizer's host phase where there are no families."""
    total = sum(facts.families.values())
    if total <= 0:
        seconds = account.lines.get("step.optimizer", 0.0) if "step.optimizer" in compute else 0.0
        return [_bar("optimizer", seconds / wall_s, wall_s, [_seconds("account.lines.step.optimizer", seconds)])]
    inside_s = sum(account.lines.get(name, 0.0) for name in compute)
    bars = []
    for name, families in (
        ("optimizer", ("optimizer",)),
        ("memory_bound_kernels", MEMORY_BOUND_FAMILIES),
        ("non_matmul", tuple(set(facts.families) - {"optimizer", *MEMORY_BOUND_FAMILIES, *MATRIX_FAMILIES})),
    ):
        part = sum(facts.families.get(family, 0.0) for family in families) / total
        evidence = [
            Evidence(metric=f"kernel window: {family}", value=facts.families[family] / total, unit="of device time")
            for family in sorted(families, key=lambda family: -facts.families.get(family, 0.0))
            if facts.families.get(family, 0.0) > 0
        ]
        bars.append(_bar(name, part * inside_s / wall_s, wall_s, evidence))
    return bars


def _matmul_bars(inside: float, efficiency: Efficiency, facts: Facts, wall_s: float) -> list[Bar]:
    """What memory bandwidth alone keeps matrix products of the recorded shapes from, by the roofline.

    At FLOP/s f and roofline share r of a peak p, a family in time t could end in t · r, while its FLOPs at peak take
    t · f / p; the difference is bandwidth's. A family's shapes are taken together, so it is the least there can be.
    """
    total = sum(facts.families.values())
    peak = efficiency.mfu.peak_flops_per_s if facts.matrix_work else None
    if total <= 0 or not peak:
        return []
    share, evidence = 0.0, []
    for family in MATRIX_FAMILIES:
        work, part = facts.matrix_work.get(family), facts.families.get(family, 0.0) / total
        if work is None or part <= 0:
            continue
        bound = max(0.0, min(work.roofline_share, 1.0) - work.flops_per_s / peak)
        if bound > _ROUNDING:
            share += inside * part * bound
            evidence += [
                Evidence(metric=f"kernel window: {family}", value=part, unit="of device time"),
                Evidence(metric=f"{family} bandwidth, at least", value=work.bytes_per_s, unit="bytes/s"),
                Evidence(metric=f"{family} roofline_share", value=work.roofline_share, unit="of attainable FLOP/s"),
            ]
    return [_bar(MEMORY_BOUND_MATMULS, share, wall_s, evidence)] if evidence else []


def _rest_bar(rest: float, inside: float, used: float, wall_s: float, facts: Facts) -> Bar:
    evidence = [
        Evidence(metric="time computing", value=inside, unit="of wall clock"),
        Evidence(metric="efficiency.mfu_wall", value=used, unit="share"),
    ]
    total = sum(facts.families.values())
    if total <= 0:
        return _bar(NOT_SPLIT, rest, wall_s, evidence)
    matmul = sum(facts.families.get(family, 0.0) for family in MATRIX_FAMILIES) / total
    evidence.insert(0, Evidence(metric="kernel window: matmuls", value=matmul, unit="of device time"))
    for family in MATRIX_FAMILIES:
        work = facts.matrix_work.get(family)
        if work is not None:
            evidence += [
                Evidence(metric=f"{family} achieved", value=work.flops_per_s, unit="FLOP/s"),
                Evidence(metric=f"{family} roofline_share", value=work.roofline_share, unit="of attainable FLOP/s"),
            ]
    return _bar(LOW_EFFICIENCY, rest, wall_s, evidence)


def _settle(bars: list[Bar], used: float, wall_s: float) -> list[Bar]:
    """Let the shares sum to 1 − used to the last digit: what rounding left goes to the largest bar."""
    largest = max(bars, key=lambda bar: bar.share)
    others = sum(bar.share for bar in bars if bar is not largest)
    largest.share = 1.0 - used - others
    largest.seconds = largest.share * wall_s
    return bars


def _bar(name: str, share: float, wall_s: float, evidence: list[Evidence]) -> Bar:
    return Bar(name=name, share=share, seconds=share * wall_s, evidence=evidence)


def _seconds(metric: str, seconds: float) -> Evidence:
    return Evidence(metric=metric, value=seconds, unit="s")
