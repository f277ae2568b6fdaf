"""MFU of another tool's log on one convention, and why the tool's own figure differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from effprof.analysis.foreign_steps import ForeignSteps
from effprof.analysis.model import ConventionFigures, Conventions, Share, Warning
from effprof.errors import EffprofError
from effprof.hardware.catalog import lookup
from effprof.hardware.peak import device_rate
from effprof.runlog.importers.base import ForeignLog
from effprof.workload.architecture import Architecture, from_hf_config
from effprof.workload.flops import counts_for, flops_model

CONVENTIONS = ("exact", "megatron", "palm", "6n")
SAME = 0.02  # a claim this near to a convention is taken to follow it
_DTYPES = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"}


@dataclass
class Recomputed:
    """What a model and a device make of a log's rates; nulls where either is not known."""

    mfu: Share = field(default_factory=lambda: Share(value=None))
    nothing: Share = field(default_factory=lambda: Share(value=None))
    conventions: Conventions = field(
        default_factory=lambda: Conventions(
            exact=ConventionFigures(),
            megatron=ConventionFigures(),
            palm=ConventionFigures(),
            six_n=ConventionFigures(),
        )
    )
    flops_per_s_per_device: float | None = None
    device: str = ""
    model: str = ""
    warnings: list[Warning] = field(default_factory=list)


def recompute(
    log: ForeignLog,
    steps: ForeignSteps,
    model: Mapping[str, Any] | None,
    device: str | None,
    dtype: str | None,
    peak_tflops: float | None,
) -> Recomputed:
    """FLOPs from the model's config and the sequence length, over the device's dense peak.

    Args:
        model: a `transformers` config, instead of the model that the log's arguments describe; without either the
            log's own claims are all there is.
        device: a name that the catalogue knows, where the log has none.
        dtype: of the matmuls; what the log says, else bf16 is assumed and said.
        peak_tflops: dense peak of one device, instead of the catalogue's.
    """
    answer = Recomputed()
    dtype = dtype or _logged_dtype(log)
    if dtype is None:
        dtype = "bf16"
        assumed = " (assumed: the log names no dtype)"
    else:
        assumed = ""
    peak, source = _peak(log, answer, device, dtype, peak_tflops)
    if peak is not None:
        kind = "given" if peak_tflops is not None else "datasheet"
        answer.mfu = Share(value=None, dtype=dtype, peak_flops_per_s=peak, peak_source=source + assumed, peak_kind=kind)
    model = model or log.facts.get("model")
    if model is None:
        answer.warnings.append(
            Warning(code="no_flops", message="no model: give its config.json with --model to recompute MFU")
        )
        return answer
    architecture = from_hf_config(model)
    answer.model = architecture.family
    _fill(answer, log, steps, architecture, peak)
    _explain(answer, log, peak)
    return answer


def _logged_dtype(log: ForeignLog) -> str | None:
    name = str(log.facts.get("dtype") or "").removeprefix("torch.")
    return _DTYPES.get(name, name if name in _DTYPES.values() else None)


def _peak(
    log: ForeignLog, answer: Recomputed, device: str | None, dtype: str, peak_tflops: float | None
) -> tuple[float | None, str]:
    """Dense peak of one device in FLOP/s and its source."""
    name = device or str(log.facts.get("device") or "")
    answer.device = name
    if peak_tflops is not None:
        return peak_tflops * 1e12, "given as --peak-tflops"
    if not name:
        answer.warnings.append(
            Warning(code="no_peak", message="the log names no device: give --device or --peak-tflops")
        )
        return None, ""
    try:
        mebibytes = None if device is not None else log.facts.get("device_memory_mib")
        row = lookup(name, memory_bytes=mebibytes * 2**20 if mebibytes else None)
    except EffprofError as error:
        if device is not None:
            raise
        answer.warnings.append(Warning(code="no_peak", message=f"{error.message}; give --device or --peak-tflops"))
        return None, ""
    answer.device = f"{row.vendor} {row.name}"
    rate = device_rate(row, dtype)
    if rate is None:
        answer.warnings.append(
            Warning(code="no_peak", message=f"no dense {dtype} rate is known of {answer.device}: give --peak-tflops")
        )
        return None, ""
    return rate, f"{answer.device}, {row.basis}: {row.source}"


def _fill(
    answer: Recomputed, log: ForeignLog, steps: ForeignSteps, architecture: Architecture, peak: float | None
) -> None:
    length = _sequence_length(log, steps)
    rate = steps.tokens_per_s_per_device[steps.is_steady & np.isfinite(steps.tokens_per_s_per_device)]
    if not length:
        answer.warnings.append(
            Warning(code="no_flops", message="the log does not say the sequence length, so MFU cannot be recomputed")
        )
        return
    counts = counts_for(architecture, 1, length)
    flops = flops_model(architecture)
    median = float(np.median(rate)) if len(rate) else None
    per_step = float(np.nanmean(steps.tokens)) if np.isfinite(steps.tokens).any() else None
    for name, figures in zip(CONVENTIONS, _each(answer.conventions), strict=True):
        total = flops.evaluate(counts, name)
        if total is None:
            continue
        figures.flops_per_token = total / counts["tokens"]
        figures.flops_per_step = figures.flops_per_token * per_step if per_step is not None else None
        if median is not None and peak is not None:
            figures.mfu = figures.flops_per_token * median / peak
    exact = answer.conventions.exact
    if exact.flops_per_token is not None and median is not None:
        answer.flops_per_s_per_device = exact.flops_per_token * median
    if exact.mfu is not None and exact.mfu <= 1:
        answer.mfu.value = exact.mfu
    elif exact.mfu is not None:
        answer.warnings.append(
            Warning(
                code="mfu_above_peak",
                message=f"MFU {exact.mfu:.3f} is above 1: model, device or number of devices cannot be these",
            )
        )


def _sequence_length(log: ForeignLog, steps: ForeignSteps) -> int | None:
    """Tokens of a sequence: as printed, else the step's tokens over its samples where that is a whole number."""
    printed = log.facts.get("sequence_length")
    if printed:
        return int(printed)
    ratios = steps.tokens / steps.samples
    known = ratios[np.isfinite(ratios)]
    if not len(known):
        return None
    length = float(np.median(known))
    return int(length) if length.is_integer() else None


def _explain(answer: Recomputed, log: ForeignLog, peak: float | None) -> None:
    """Which convention and which peak the tool's own figures follow."""
    tflops, mfu = _median(log, "tflops_per_device"), _median(log, "mfu")
    parts = []
    exact = answer.conventions.exact
    if tflops is not None and answer.flops_per_s_per_device:
        ratio = tflops * 1e12 / answer.flops_per_s_per_device
        parts.append(f"it counts {ratio:.3f} × the exact FLOPs{_nearest(answer, ratio)}")
    if tflops is not None and mfu is not None and peak is not None:
        used = tflops * 1e12 / mfu
        if abs(used / peak - 1) > SAME:
            parts.append(f"it divides by {used / 1e12:.0f} TFLOP/s, the dense peak is {peak / 1e12:.0f}")
    claimed = mfu if mfu is not None else tflops * 1e12 / peak if tflops is not None and peak is not None else None
    if claimed is None or exact.mfu is None or abs(claimed / exact.mfu - 1) <= SAME:
        return
    why = "; ".join(parts) or "the log does not tell from what"
    answer.warnings.append(
        Warning(code="claimed_mfu_differs", message=f"the tool claims {claimed:.1%}, exact is {exact.mfu:.1%}: {why}")
    )


def _nearest(answer: Recomputed, ratio: float) -> str:
    exact = answer.conventions.exact.flops_per_token
    names = [
        (abs(figures.flops_per_token / exact / ratio - 1), name)
        for name, figures in zip(CONVENTIONS, _each(answer.conventions), strict=True)
        if figures.flops_per_token is not None and exact
    ]
    if names and min(names)[0] <= SAME:
        return f", as the convention {min(names)[1]} does"
    if abs(ratio * 3 / 4 - 1) <= SAME:
        return ", a third more: recomputation counted as work"
    return ": recomputation, padded vocabulary, inactive experts or another model"


def _each(conventions: Conventions) -> tuple[ConventionFigures, ...]:
    return conventions.exact, conventions.megatron, conventions.palm, conventions.six_n


def _median(log: ForeignLog, name: str) -> float | None:
    values = log.columns.get(name)
    known = values[np.isfinite(values) & (values > 0)] if values is not None else np.array([])
    return float(np.median(known)) if len(known) else None
