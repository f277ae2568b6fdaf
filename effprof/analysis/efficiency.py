"""MFU, its conventions and throughput of a run's steady steps, each with its interval or the reason it is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effprof.analysis.model import (
    ConventionFigures,
    Conventions,
    Efficiency,
    Rate,
    Share,
    StepCounts,
    StepTime,
    Warning,
)
from effprof.analysis.steps import FEW_STEPS, JobSteps
from effprof.metrics.intervals import median_interval, ratio_interval
from effprof.metrics.mfu import is_above_peak, mfu
from effprof.runlog.schema import RunRecord
from effprof.workload.model import CONVENTIONS

Array = NDArray[np.float64]
COUNTS_AGREE = 0.001  # two counts of the FLOPs that differ by more are told, with the reason


@dataclass(frozen=True)
class Peak:
    """Dense peak of one device and where it comes from; `flops_per_s` None with the `reason`."""

    flops_per_s: float | None
    dtype: str | None = None
    source: str | None = None
    kind: str | None = None
    reason: str = ""


def find_peak(record: RunRecord, device_type: str, peak_tflops: float | None = None) -> Peak:
    """The peak that the run recorded, or `peak_tflops` (TFLOP/s of one device) in its place."""
    recorded: Mapping[str, Any] = record.hardware.get("peak") or {}
    shares = record.flops.by_dtype
    dtype = recorded.get("dtype") or (max(shares, key=lambda name: shares[name]) if shares else None)
    if peak_tflops is not None:
        return Peak(peak_tflops * 1e12, dtype, "given by --peak-tflops", "given")
    value = recorded.get("flops_per_s")
    if not isinstance(value, (int, float)) or not value > 0:
        name = record.hardware.get("name") or "this device"
        remedy = "pass --peak-tflops, or peak_tflops= to the callback"
        return Peak(None, dtype, reason=_recorded(record, "no_peak") or f"no peak is known for {name}: {remedy}")
    source = str(recorded.get("source") or "")
    kind = recorded.get("kind") or ("measured_ceiling" if device_type == "cpu" and "given" not in source else None)
    if kind == "measured_ceiling" and "measured ceiling" not in source:
        source = f"measured ceiling: {source.removeprefix('measured here: ')}" if source else "measured ceiling"
    return Peak(float(value), dtype, source or None, kind)


def measure_efficiency(
    record: RunRecord, steps: JobSteps, peak: Peak, wall_device_s: float
) -> tuple[Efficiency, list[Warning]]:
    """The `efficiency` part of an analysis.

    Args:
        steps: the job's steps of all attempts.
        wall_device_s: wall clock × devices of the whole run, device-seconds.
    """
    warnings = _explain_missing(record, steps, peak)
    useful = ~steps.is_lost
    conventions = {name: _convention(name, steps, peak, warnings) for name in CONVENTIONS}
    wall = _wall_share(float(steps.flops["exact"][useful].sum()), wall_device_s, peak, warnings)
    hardware = _hardware_share(record, steps, peak, warnings)
    if any(warning.code == "mfu_above_peak" and "(exact)" in warning.message for warning in warnings):
        # the inputs are wrong: what the same ones make of a longer time only looks possible
        wall.value = hardware.value = hardware.ci95 = None
    efficiency = Efficiency(
        mfu=_steady_share(steps.flops["exact"], steps, peak, conventions["exact"].mfu),
        mfu_wall=wall,
        hfu=hardware,
        conventions=Conventions(
            exact=conventions["exact"],
            megatron=conventions["megatron"],
            palm=conventions["palm"],
            six_n=conventions["6n"],
        ),
        steps=StepCounts(
            total=len(steps.step),
            steady=int(steps.is_steady.sum()),
            repeated=int(steps.is_repeated.sum()),
            profiled=int(steps.is_profiled.sum()),
            rules=steps.rules,
        ),
        tokens_per_step=_mean(steps.steady(steps.counts["tokens"])),
        samples_per_step=_mean(steps.steady(steps.counts["samples"])),
        padding_share=_complement(_ratio(steps, "tokens", "positions")),
        loss_token_share=_ratio(steps, "loss_tokens", "tokens"),
        step_time_s=step_time(steps.steady(steps.seconds)),
        tokens_per_s=_rate(steps.counts["tokens"], steps),
        tokens_per_s_per_device=_rate(steps.counts["tokens"] / steps.devices, steps),
        samples_per_s=_rate(steps.counts["samples"], steps),
        model_flops_per_s_per_device=_rate(steps.flops["exact"] / steps.devices, steps),
    )
    return efficiency, warnings


def step_time(seconds: Array) -> StepTime:
    """Median, 95th percentile and the median's interval of step times, shape (steps,)."""
    if len(seconds) == 0:
        return StepTime()
    median, p95 = np.percentile(seconds, [50, 95])
    return StepTime(median=float(median), p95=float(p95), ci95=median_interval(seconds))


def _explain_missing(record: RunRecord, steps: JobSteps, peak: Peak) -> list[Warning]:
    warnings = []
    steady = int(steps.is_steady.sum())
    if steady < FEW_STEPS:
        done = f"{steady} steady {'step' if steady == 1 else 'steps'}"
        warnings.append(
            Warning(code="too_few_steps", message=f"{done} of {len(steps.step)}: figures of so few carry no interval")
        )
    if peak.flops_per_s is None:
        warnings.append(Warning(code="no_peak", message=peak.reason))
    if not record.flops.conventions.get("exact"):
        warnings.append(Warning(code="no_flops", message=_recorded(record, "no_flops") or _no_flops(record)))
    elif len(steps.step) and not np.isfinite(steps.flops["exact"]).all():
        needs = ", ".join(record.flops.conventions["exact"])
        warnings.append(
            Warning(
                code="no_counts",
                message=f"FLOPs follow from {needs}, which were not counted: pass tokens_fn= to the callback",
            )
        )
    warnings += _doubt_flops(record)
    if len(steps.step) and not np.isfinite(steps.counts["tokens"]).any():
        warnings.append(
            Warning(code="no_tokens", message="tokens were not counted: pass tokens_fn= if the batches hold tokens")
        )
    return warnings


def _doubt_flops(record: RunRecord) -> list[Warning]:
    """What the count of FLOPs leaves open: two counts that differ, work that was not counted, assumptions."""
    flops = record.flops
    if flops.source in (None, "given"):
        return []
    found = []
    difference = flops.counts.get("difference")
    if isinstance(difference, (int, float)) and abs(difference) > COUNTS_AGREE:
        both = " and ".join(
            f"{name.replace('_', ' ')} {flops.counts.get(name):.4g}" for name in ("closed_form", "operation_count")
        )
        message = f"the two counts of FLOPs differ by {100 * abs(difference):.2f} % ({both}): {flops.reason}"
        found.append(Warning(code="flops_disagree", message=message))
    if flops.uncounted or (flops.coverage is not None and flops.coverage < 1):
        share = "" if flops.coverage is None else f" (coverage {100 * flops.coverage:.1f} %)"
        names = ", ".join(flops.uncounted) or "some operations"
        # the closed form holds them all the same, so that only the check of it is weaker
        used = "; the closed form is used" if flops.source == "closed_form" else ""
        message = f"the count of operations leaves out {names}{share}{used}"
        found.append(Warning(code="flops_uncounted", message=message))
    found += [Warning(code="flops_assumption", message=f"FLOPs assume: {text}") for text in flops.assumptions]
    return found


def _recorded(record: RunRecord, code: str) -> str:
    """What the run itself said about a figure that it could not find out; empty if nothing."""
    return next((str(w.get("message", "")) for w in record.warnings if w.get("code") == code), "")


def _no_flops(record: RunRecord) -> str:
    reason = record.flops.reason or "the model's FLOPs are not in the record"
    hint = "" if "flops_per_step" in reason else ": pass flops_per_step= or model_config= to the callback"
    return f"{reason}{hint}"


def _convention(name: str, steps: JobSteps, peak: Peak, warnings: list[Warning]) -> ConventionFigures:
    flops = steps.steady(steps.flops[name])
    device_s = float((steps.steady(steps.seconds) * steps.steady(steps.devices)).sum())
    total = float(flops.sum())
    tokens = float(steps.steady(steps.counts["tokens"]).sum())
    _check_peak(f"MFU ({name})", total, device_s, peak, warnings)
    return ConventionFigures(
        flops_per_step=_mean(flops),
        flops_per_token=total / tokens if np.isfinite(total) and tokens > 0 else None,
        mfu=mfu(total, device_s, peak.flops_per_s, 1),
    )


def _steady_share(flops: Array, steps: JobSteps, peak: Peak, value: float | None) -> Share:
    interval = None
    if value is not None and peak.flops_per_s:
        device_s = steps.steady(steps.seconds) * steps.steady(steps.devices)
        interval = ratio_interval(steps.steady(flops), device_s * peak.flops_per_s)
    return _share(value, peak, interval)


def _wall_share(flops: float, wall_device_s: float, peak: Peak, warnings: list[Warning]) -> Share:
    _check_peak("MFU over the wall clock", flops, wall_device_s, peak, warnings)
    return _share(mfu(flops, wall_device_s, peak.flops_per_s, 1) if flops > 0 else None, peak)


def _hardware_share(record: RunRecord, steps: JobSteps, peak: Peak, warnings: list[Warning]) -> Share:
    """HFU: recompute added, and the per-token part counted for every position instead of every useful token.

    Masked attention over padding is not added: whether a kernel computes or skips it is not known here.
    """
    recompute = record.flops.recompute_share
    if recompute is None:
        if record.flops.conventions.get("exact"):
            warnings.append(
                Warning(code="hfu_not_known", message="HFU: whether activations are recomputed is not in the record")
            )
        return _share(None, peak)
    flops = steps.flops["exact"] * (1 + recompute)
    terms = record.flops.conventions.get("exact", {})
    padded = np.nan_to_num(steps.counts["positions"] - steps.counts["tokens"])
    flops = flops + terms.get("tokens", 0.0) * (1 + recompute) * np.maximum(padded, 0.0)
    device_s = float((steps.steady(steps.seconds) * steps.steady(steps.devices)).sum())
    total = float(steps.steady(flops).sum())
    _check_peak("HFU", total, device_s, peak, warnings)
    return _steady_share(flops, steps, peak, mfu(total, device_s, peak.flops_per_s, 1))


def _share(value: float | None, peak: Peak, interval: tuple[float, float] | None = None) -> Share:
    return Share(
        value=value,
        ci95=interval,
        dtype=peak.dtype,
        peak_flops_per_s=peak.flops_per_s,
        peak_source=peak.source,
        peak_kind=peak.kind,
    )


def _check_peak(what: str, flops: float, device_s: float, peak: Peak, warnings: list[Warning]) -> None:
    if not is_above_peak(flops, device_s, peak.flops_per_s, 1):
        return
    share = flops / (device_s * (peak.flops_per_s or 1.0))
    warnings.append(
        Warning(
            code="mfu_above_peak",
            message=f"{what} would be {100 * share:.0f} %: the peak ({peak.source or 'source unknown'}), the FLOPs "
            "or the token count is wrong",
        )
    )


def _rate(amount: Array, steps: JobSteps) -> Rate:
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = steps.steady(amount) / steps.steady(steps.seconds)
    if len(rates) == 0 or not np.isfinite(rates).all():
        return Rate()
    p5, median = np.percentile(rates, [5, 50])
    return Rate(median=float(median), p5=float(p5), ci95=median_interval(rates))


def _ratio(steps: JobSteps, above: str, below: str) -> float | None:
    top, bottom = float(steps.steady(steps.counts[above]).sum()), float(steps.steady(steps.counts[below]).sum())
    return top / bottom if np.isfinite(top) and bottom > 0 else None


def _complement(share: float | None) -> float | None:
    return None if share is None else 1.0 - share


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) and np.isfinite(values).all() else None
