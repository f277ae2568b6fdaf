"""MFU of another tool's log on one convention."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from effprof.analysis.foreign_claims import explain
from effprof.analysis.foreign_given import DTYPES, Given
from effprof.analysis.foreign_steps import ForeignSteps
from effprof.analysis.model import ConventionFigures, Conventions, Share, Warning
from effprof.errors import EffprofError
from effprof.hardware.catalog import lookup
from effprof.hardware.peak import canonical_dtype, device_rate
from effprof.runlog.importers.base import ForeignLog
from effprof.workload.architecture import Architecture, from_hf_config
from effprof.workload.flops import counts_for, flops_model

CONVENTIONS = ("exact", "megatron", "palm", "6n")
ASSUMED_DTYPE = "bf16"


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

    def warn(self, code: str, message: str) -> None:
        """Add a warning."""
        self.warnings.append(Warning(code=code, message=message))


def recompute(log: ForeignLog, steps: ForeignSteps, given: Given) -> Recomputed:
    """FLOPs from the model's config and the sequence length, over the device's dense peak.

    Args:
        given: with a `model`, that is taken instead of the one that the log's arguments describe; without either the
            log's own claims are all there is. A `device` or a peak is taken instead of what the log names.
    """
    answer = Recomputed()
    dtype = _logged_dtype(log)
    peak = _peak(log, answer, given, dtype or ASSUMED_DTYPE)
    if peak is not None and dtype is None and given.peak_tflops is None:
        answer.warn(
            "dtype_assumed", f"the log names no dtype: the peak is that of {ASSUMED_DTYPE}; --dtype sets another"
        )
    model = given.model or log.facts.get("model")
    if model is None:
        answer.warn("no_flops", "no model: give its config.json with --model to recompute MFU")
        return answer
    architecture = from_hf_config(model)
    answer.model = architecture.family
    length = _sequence_length(log, steps)
    if architecture.positions_per_sample is not None:
        answer.warn("no_flops", f"{architecture.family} takes no tokens: its MFU cannot be recomputed from a log")
    elif not length:
        answer.warn("no_flops", "the log does not say the sequence length: give --seq to recompute MFU")
    else:
        _fill(answer, steps, architecture, length, peak)
        difference = explain(log, architecture, answer.conventions, answer.flops_per_s_per_device, peak)
        if difference is not None:
            answer.warn("claimed_mfu_differs", difference)
    return answer


def _logged_dtype(log: ForeignLog) -> str | None:
    name = canonical_dtype(str(log.facts.get("dtype") or ""))
    return name if name in DTYPES else None


def _peak(log: ForeignLog, answer: Recomputed, given: Given, dtype: str) -> float | None:
    """Dense peak of one device in FLOP/s; it and its source go into the answer's share."""
    answer.device = given.device or str(log.facts.get("device") or "")
    if given.peak_tflops is not None:
        known = _logged_dtype(log)
        peak, source, kind, label = given.peak_tflops * 1e12, "given as --peak-tflops", "given", known
    else:
        found = _from_catalogue(log, answer, given, dtype)
        if found is None:
            return None
        (peak, source), kind, label = found, "datasheet", dtype
    answer.mfu = Share(value=None, dtype=label, peak_flops_per_s=peak, peak_source=source, peak_kind=kind)
    return peak


def _from_catalogue(log: ForeignLog, answer: Recomputed, given: Given, dtype: str) -> tuple[float, str] | None:
    if not answer.device:
        answer.warn("no_peak", "the log names no device: give --device or --peak-tflops")
        return None
    try:
        mebibytes = None if given.device is not None else log.facts.get("device_memory_mib")
        row = lookup(answer.device, memory_bytes=mebibytes * 2**20 if mebibytes else None)
    except EffprofError as error:
        if given.device is not None:
            raise
        answer.warn("no_peak", f"{error.message}; give --device or --peak-tflops")
        return None
    answer.device = f"{row.vendor} {row.name}"
    rate = device_rate(row, dtype)
    if rate is None:
        known = ", ".join(row.peak_tflops) or "none"
        answer.warn(
            "no_peak",
            f"no dense {dtype} rate is known of {answer.device} (known: {known}): give --dtype or --peak-tflops",
        )
        return None
    assumed = "" if _logged_dtype(log) else " (assumed: the log names no dtype)"
    return rate, f"{answer.device}, {row.basis}: {row.source}{assumed}"


def _fill(answer: Recomputed, steps: ForeignSteps, architecture: Architecture, length: int, peak: float | None) -> None:
    rate = steps.tokens_per_s_per_device[steps.is_steady & np.isfinite(steps.tokens_per_s_per_device)]
    counts = counts_for(architecture, 1, length)
    flops = flops_model(architecture)
    median = float(np.median(rate)) if len(rate) else None
    per_step = float(np.nanmean(steps.tokens)) if np.isfinite(steps.tokens).any() else None
    conventions = answer.conventions
    each = (conventions.exact, conventions.megatron, conventions.palm, conventions.six_n)
    for name, figures in zip(CONVENTIONS, each, strict=True):
        total = flops.evaluate(counts, name)
        if total is None:
            continue
        figures.flops_per_token = total / counts["tokens"]
        figures.flops_per_step = figures.flops_per_token * per_step if per_step is not None else None
        if median is not None and peak is not None:
            figures.mfu = figures.flops_per_token * median / peak
    exact = conventions.exact
    if median is None:
        answer.warn(
            "no_counts",
            "a device's tokens/s do not follow from the log: --devices, --global-batch and --seq say what it lacks",
        )
    elif exact.flops_per_token is not None:
        answer.flops_per_s_per_device = exact.flops_per_token * median
    if exact.mfu is not None and exact.mfu <= 1:
        answer.mfu.value = exact.mfu
    elif exact.mfu is not None:
        answer.warn(
            "mfu_above_peak",
            f"MFU {exact.mfu:.3f} is above 1: model, device or number of devices cannot be these",
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
