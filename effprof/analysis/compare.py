"""Runs side by side: what was configured differently, then every figure with its ratio to the first run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from effprof.analysis.analyze import Examined
from effprof.analysis.model import ACCOUNT_LINES, Analysis, Interval, Warning, _says
from effprof.analysis.steps import FEW_STEPS, JobSteps
from effprof.errors import EffprofError
from effprof.metrics.intervals import median_replicates, percentiles, ratio_replicates

SCHEMA = "effprof.compare/1"
Array = NDArray[np.float64]
# Facts that differ between any two runs and say nothing about what was configured.
_NOT_CONFIGURATION = ("peak", "peak_parts", "architecture", "uuid", "pci_bus_id", "index", "seconds", "counts")

# Warnings of a single run that explain a gap or a doubt in the comparison.
_CARRIED_OVER = ("no_peak", "no_flops", "no_counts", "mfu_above_peak", "too_few_steps", "not_steady", "missing_ranks")
# Ratios this close to 1 differ only by how floating point rounds.
_SAME = 1e-9


class ComparedRun(msgspec.Struct, kw_only=True):
    """One of the runs, in a line."""

    id: str
    path: str
    model: str
    device: Annotated[str, _says("kind of device; several kinds joined by +")]
    devices: int
    ended: str


class Difference(msgspec.Struct, kw_only=True):
    """A setting in which the runs differ."""

    key: Annotated[str, _says("dotted: config.precision, model.parameters_total, hardware.device, …")]
    values: Annotated[list[Any], _says("one per run; null where the run does not say")]


class Ratio(msgspec.Struct, kw_only=True):
    """A run's value over the first run's."""

    value: float | None = None
    ci95: Annotated[
        Interval | None, _says("95 % interval from within-run noise; null where the figure has no series of steps")
    ] = None
    is_different: Annotated[bool | None, _says("whether the interval leaves out 1; null without an interval")] = None


class Metric(msgspec.Struct, kw_only=True):
    """One figure of every run."""

    name: str
    unit: str
    scope: Annotated[str, _says("`absolute`, `per_device`, `relative_to_peak`, `relative_to_bandwidth` or `memory`")]
    higher_is_better: bool | None
    values: list[float | None]
    ratios: Annotated[list[Ratio], _says("one per run; the first run's is 1")]


class AccountShares(msgspec.Struct, kw_only=True):
    """Share of the wall clock in one line of the time account, per run."""

    line: str
    shares: Annotated[list[float | None], _says("null where a run's basis cannot measure the line")]


class Comparison(msgspec.Struct, kw_only=True):
    """Two or more runs; the first is what the others are measured against."""

    schema: Annotated[str, _says("names this document's keys")] = SCHEMA
    runs: list[ComparedRun]
    differences: list[Difference]
    metrics: list[Metric]
    account: list[AccountShares]
    warnings: list[Warning] = []


Series = Callable[[JobSteps], tuple[Array, Array]]
Value = Callable[[Analysis], float | None]


class _Figure(msgspec.Struct):
    """How a metric is read from an analysis, and resampled: a per-step series whose statistic the value is."""

    name: str
    unit: str
    scope: str
    higher_is_better: bool | None
    value: Value
    replicates: Callable[[JobSteps, Analysis, int], Array] | None = None


def compare(runs: Sequence[Examined]) -> Comparison:
    """Set runs side by side; every ratio is to the first.

    Raises:
        EffprofError: fewer than two runs.
    """
    if len(runs) < 2:
        raise EffprofError("compare needs at least two runs", "give two or more run directories")
    analyses = [run.analysis for run in runs]
    return Comparison(
        runs=[_describe(analysis) for analysis in analyses],
        differences=_differences(analyses),
        metrics=[_metric(figure, runs) for figure in _FIGURES],
        account=_account_shares(analyses),
        warnings=_caveats(analyses),
    )


def _describe(analysis: Analysis) -> ComparedRun:
    return ComparedRun(
        id=analysis.run.id,
        path=analysis.run.path,
        model=str(analysis.run.model.get("name") or analysis.run.model.get("class") or "model"),
        device=" + ".join(group.name for group in analysis.hardware.devices),
        devices=analysis.run.world_size,
        ended=analysis.run.ended,
    )


def _differences(analyses: Sequence[Analysis]) -> list[Difference]:
    flat = [_settings(analysis) for analysis in analyses]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [settings.get(key) for settings in flat] for key in keys}
    return [Difference(key=key, values=found) for key, found in values.items() if any(v != found[0] for v in found)]


def _settings(analysis: Analysis) -> dict[str, Any]:
    run = analysis.run
    settings: dict[str, Any] = {}
    _flatten("config", run.config, settings)
    _flatten("model", run.model, settings)
    settings["hardware.device"] = " + ".join(group.name for group in analysis.hardware.devices)
    settings["hardware.devices"] = run.world_size
    settings["hardware.hosts"] = len(analysis.hardware.hosts)
    peak = analysis.efficiency.mfu
    settings["hardware.peak_kind"] = peak.peak_kind
    if peak.peak_kind != "measured_ceiling":  # what was measured differs each time, and nobody configured it
        settings["hardware.peak_flops_per_s"] = peak.peak_flops_per_s
        settings["hardware.peak_source"] = peak.peak_source
    settings["flops.dtype"] = analysis.efficiency.mfu.dtype
    settings["flops.source"] = run.flops.get("source")
    _flatten("parallel", run.parallel, settings)
    settings["software.framework"] = f"{run.framework} {run.framework_version}".strip()
    _flatten("software", run.software, settings)
    return settings


def _flatten(prefix: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _NOT_CONFIGURATION:
                _flatten(f"{prefix}.{key}", item, into)
    else:
        into[prefix] = value


def _metric(figure: _Figure, runs: Sequence[Examined]) -> Metric:
    values = [figure.value(run.analysis) for run in runs]
    return Metric(
        name=figure.name,
        unit=figure.unit,
        scope=figure.scope,
        higher_is_better=figure.higher_is_better,
        values=values,
        ratios=[Ratio(value=1.0)]
        + [_ratio(figure, runs[0], run, values[0], figure.value(run.analysis)) for run in runs[1:]],
    )


def _ratio(figure: _Figure, first: Examined, other: Examined, base: float | None, value: float | None) -> Ratio:
    if base is None or value is None or base == 0:
        return Ratio()
    ratio = Ratio(value=value / base)
    enough = min(int(run.steps.is_steady.sum()) for run in (first, other)) >= FEW_STEPS
    if figure.replicates is not None and enough:
        # different seeds: two runs of equal length must not be resampled in step with each other
        above, below = (
            figure.replicates(other.steps, other.analysis, 1),
            figure.replicates(first.steps, first.analysis, 0),
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio.ci95 = percentiles(above / below)
    if ratio.ci95 is not None:
        ratio.is_different = ratio.ci95[0] > 1.0 + _SAME or ratio.ci95[1] < 1.0 - _SAME
    return ratio


def _account_shares(analyses: Sequence[Analysis]) -> list[AccountShares]:
    shares = []
    for line in ACCOUNT_LINES:
        seconds = [analysis.account.lines.get(line) for analysis in analyses]
        if any(seconds):
            walls = [analysis.account.wall_s for analysis in analyses]
            shares.append(
                AccountShares(
                    line=line,
                    shares=[None if s is None or w <= 0 else s / w for s, w in zip(seconds, walls, strict=True)],
                )
            )
    return shares


def _caveats(analyses: Sequence[Analysis]) -> list[Warning]:
    warnings = []
    kinds = {analysis.efficiency.mfu.peak_kind for analysis in analyses if analysis.efficiency.mfu.value is not None}
    if "measured_ceiling" in kinds and len(kinds) > 1:
        warnings.append(
            Warning(
                code="peaks_differ_in_kind",
                message="one run's peak is a measured ceiling, another's is not: their MFUs are shares of different "
                "things and their ratio says little",
            )
        )
    if len({analysis.efficiency.mfu.dtype for analysis in analyses}) > 1:
        warnings.append(Warning(code="dtypes_differ", message="the runs' matmuls ran in different dtypes"))
    if len({analysis.account.basis for analysis in analyses}) > 1:
        warnings.append(
            Warning(code="bases_differ", message="the time accounts rest on different clocks (host, device events)")
        )
    for analysis in analyses:
        code = {warning.code: warning.message for warning in analysis.warnings}
        warnings += [
            Warning(code=name, message=f"{analysis.run.id}: {code[name]}") for name in _CARRIED_OVER if name in code
        ]
    warnings.append(
        Warning(
            code="within_run_intervals",
            message="intervals cover the noise between steps within each run; starting the same job twice can differ "
            "by more",
        )
    )
    return warnings


def _per_bandwidth(analysis: Analysis) -> float | None:
    rate, bandwidth = analysis.efficiency.tokens_per_s_per_device.median, analysis.hardware.memory_bandwidth_bytes_per_s
    return rate / (bandwidth / 1e12) if rate is not None and bandwidth else None


def _per_peak(analysis: Analysis) -> float | None:
    rate, peak = analysis.efficiency.tokens_per_s_per_device.median, analysis.efficiency.mfu.peak_flops_per_s
    return rate / (peak / 1e12) if rate is not None and peak else None


def _median_of(amount: Callable[[JobSteps], Array]) -> Callable[[JobSteps, Analysis, int], Array]:
    """Replicates of the median over steady steps of `amount` per second."""

    def replicates(steps: JobSteps, analysis: Analysis, salt: int) -> Array:
        return median_replicates(steps.steady(amount(steps) / steps.seconds), salt)

    return replicates


def _step_time(steps: JobSteps, analysis: Analysis, salt: int) -> Array:
    return median_replicates(steps.steady(steps.seconds), salt)


def _mfu(steps: JobSteps, analysis: Analysis, salt: int) -> Array:
    peak = analysis.efficiency.mfu.peak_flops_per_s or 1.0
    seconds = steps.steady(steps.seconds) * steps.steady(steps.devices) * peak
    return ratio_replicates(steps.steady(steps.flops["exact"]), seconds, salt)


def _scaled(
    replicates: Callable[[JobSteps, Analysis, int], Array], by: Callable[[Analysis], float | None]
) -> Callable[[JobSteps, Analysis, int], Array]:
    def scaled(steps: JobSteps, analysis: Analysis, salt: int) -> Array:
        return replicates(steps, analysis, salt) / ((by(analysis) or 1.0) / 1e12)

    return scaled


_tokens = _median_of(lambda steps: steps.counts["tokens"])
_tokens_per_device = _median_of(lambda steps: steps.counts["tokens"] / steps.devices)
_samples = _median_of(lambda steps: steps.counts["samples"])
_samples_per_device = _median_of(lambda steps: steps.counts["samples"] / steps.devices)
_flops_per_device = _median_of(lambda steps: steps.flops["exact"] / steps.devices)


def _samples_rate_per_device(analysis: Analysis) -> float | None:
    rate = analysis.efficiency.samples_per_s.median
    has_devices = all(warning.code != "devices_unknown" for warning in analysis.warnings)
    return rate / analysis.run.world_size if rate is not None and has_devices else None


_FIGURES = (
    _Figure("step_time_s", "s", "absolute", False, lambda a: a.efficiency.step_time_s.median, _step_time),
    _Figure("tokens_per_step", "tokens", "absolute", None, lambda a: a.efficiency.tokens_per_step),
    _Figure("tokens_per_s", "tokens/s", "absolute", True, lambda a: a.efficiency.tokens_per_s.median, _tokens),
    _Figure("samples_per_s", "samples/s", "absolute", True, lambda a: a.efficiency.samples_per_s.median, _samples),
    _Figure(
        "tokens_per_s_per_device",
        "tokens/s",
        "per_device",
        True,
        lambda a: a.efficiency.tokens_per_s_per_device.median,
        _tokens_per_device,
    ),
    _Figure("samples_per_s_per_device", "samples/s", "per_device", True, _samples_rate_per_device, _samples_per_device),
    _Figure(
        "model_flops_per_s_per_device",
        "FLOP/s",
        "per_device",
        True,
        lambda a: a.efficiency.model_flops_per_s_per_device.median,
        _flops_per_device,
    ),
    _Figure("mfu", "share", "relative_to_peak", True, lambda a: a.efficiency.mfu.value, _mfu),
    _Figure("mfu_wall", "share", "relative_to_peak", True, lambda a: a.efficiency.mfu_wall.value),
    _Figure("hfu", "share", "relative_to_peak", None, lambda a: a.efficiency.hfu.value),
    _Figure(
        "tokens_per_s_per_peak_tflops",
        "tokens/s per TFLOP/s",
        "relative_to_peak",
        True,
        _per_peak,
        _scaled(_tokens_per_device, lambda a: a.efficiency.mfu.peak_flops_per_s),
    ),
    _Figure(
        "tokens_per_s_per_bandwidth_tb_per_s",
        "tokens/s per TB/s",
        "relative_to_bandwidth",
        True,
        _per_bandwidth,
        _scaled(_tokens_per_device, lambda a: a.hardware.memory_bandwidth_bytes_per_s),
    ),
    _Figure("padding_share", "share", "absolute", False, lambda a: a.efficiency.padding_share),
    _Figure("peak_reserved_bytes", "bytes", "memory", False, lambda a: a.memory.peak_reserved_bytes),
    _Figure("process_rss_bytes", "bytes", "memory", False, lambda a: a.memory.process_rss_bytes),
)
