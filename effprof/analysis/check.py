"""A run held against a baseline: has it become slower by more than is allowed, and is that more than noise?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from effprof.analysis.analyze import Examined
from effprof.analysis.compare import Comparison, Metric, Ratio, compare
from effprof.analysis.model import Interval, Warning, _says
from effprof.errors import EffprofError

SCHEMA = "effprof.check/1"
PASSED, FAILED, INCONCLUSIVE = "passed", "failed", "inconclusive"
# Without a choice: throughput in the first of these that both runs have, and the share of the peak.
THROUGHPUT = ("tokens_per_s_per_device", "samples_per_s_per_device", "step_time_s")
EFFICIENCY = "mfu"
# Settings that make two runs incomparable where they differ.
_MUST_MATCH = ("hardware.device", "hardware.devices", "model.parameters_total", "flops.dtype")


class Checked(msgspec.Struct, kw_only=True):
    """One figure of the run beside the baseline's."""

    metric: str
    unit: str
    value: float | None
    baseline: Annotated[float | None, _says("of the baseline that the run comes off best against")]
    change: Annotated[float | None, _says("relative, above 0 is better: −0.05 is 5 % worse")]
    ci95: Annotated[Interval | None, _says("95 % interval of `change`, from noise between steps")] = None
    verdict: Annotated[
        str,
        _says(
            "`failed`: worse than allowed, and the interval leaves out no change; `inconclusive`: worse than allowed, "
            "but noise could explain it, or not measured in both; `passed` otherwise"
        ),
    ]


class Check(msgspec.Struct, kw_only=True):
    """What `effprof check` answers."""

    schema: Annotated[str, _says("names this document's keys")] = SCHEMA
    run: Annotated[str, _says("id of the run")]
    path: str
    baselines: Annotated[list[str], _says("paths of the runs it is held against")]
    max_regression: Annotated[float, _says("relative: 0.03 is 3 %")]
    verdict: Annotated[str, _says("`failed` where any figure failed or the run did; then `inconclusive`; or `passed`")]
    checks: list[Checked]
    warnings: list[Warning] = []


def check(run: Examined, baselines: Sequence[Examined], max_regression: float, metrics: Sequence[str] = ()) -> Check:
    """Hold a run against one or several baselines.

    Against several, a figure fails only where it fails against each: starts of the same job differ by more than the
    noise inside one of them, and the spread of the baselines shows by how much.

    Args:
        max_regression: allowed relative loss, 0.03 for 3 %.
        metrics: names of a comparison's figures; throughput per device and MFU by default.

    Raises:
        EffprofError: no baseline, or a metric that no comparison has or that has no better and worse.
    """
    if not baselines:
        raise EffprofError("nothing to check against", "give --baseline RUN")
    comparisons = [compare([baseline, run]) for baseline in baselines]
    is_ceiling = run.analysis.efficiency.mfu.peak_kind == "measured_ceiling"
    names = list(metrics) or _default_metrics(comparisons[0], with_mfu=not is_ceiling)
    checks = [_best([_checked(_metric(each, name), max_regression) for each in comparisons]) for name in names]
    warnings = [warning for each in comparisons for warning in _incomparable(each)]
    ended = run.analysis.run.ended
    if ended == "failed":
        warnings.append(Warning(code="run_failed", message=f"the run failed: {run.analysis.run.ended_reason}"))
    verdicts = {FAILED} if ended == "failed" else {each.verdict for each in checks}
    return Check(
        run=run.analysis.run.id,
        path=run.analysis.run.path,
        baselines=[each.analysis.run.path for each in baselines],
        max_regression=max_regression,
        verdict=next((each for each in (FAILED, INCONCLUSIVE) if each in verdicts), PASSED),
        checks=checks,
        warnings=warnings,
    )


def _default_metrics(comparison: Comparison, *, with_mfu: bool) -> list[str]:
    # a ceiling that is measured anew in each run would add its own noise to the gate
    measured = {metric.name for metric in comparison.metrics if None not in metric.values}
    throughput = next((name for name in THROUGHPUT if name in measured), THROUGHPUT[0])
    return [throughput, *([EFFICIENCY] if with_mfu and EFFICIENCY in measured else [])]


def _metric(comparison: Comparison, name: str) -> Metric:
    known = {metric.name: metric for metric in comparison.metrics if metric.higher_is_better is not None}
    if name not in known:
        raise EffprofError(f"{name}: not a figure that can be checked", f"there are: {', '.join(known)}")
    return known[name]


def _checked(metric: Metric, max_regression: float) -> Checked:
    baseline, value = metric.values
    change, interval = _as_change(metric.ratios[1], higher_is_better=bool(metric.higher_is_better))
    if change is None:
        verdict = INCONCLUSIVE
    elif change >= -max_regression:
        verdict = PASSED
    else:
        is_shown = interval is not None and interval[1] < 0
        # a figure without a series of steps, such as a peak of memory, is what it is
        verdict = FAILED if is_shown or (interval is None and metric.scope == "memory") else INCONCLUSIVE
    return Checked(
        metric=metric.name,
        unit=metric.unit,
        value=value,
        baseline=baseline,
        change=change,
        ci95=interval,
        verdict=verdict,
    )


def _as_change(ratio: Ratio, *, higher_is_better: bool) -> tuple[float | None, Interval | None]:
    """A ratio to the baseline as a relative change whose sign says better or worse."""
    if ratio.value is None or ratio.value <= 0:
        return None, None
    if higher_is_better:
        return ratio.value - 1, None if ratio.ci95 is None else (ratio.ci95[0] - 1, ratio.ci95[1] - 1)
    return 1 / ratio.value - 1, None if ratio.ci95 is None else (1 / ratio.ci95[1] - 1, 1 / ratio.ci95[0] - 1)


def _best(candidates: Sequence[Checked]) -> Checked:
    order = {PASSED: 0, INCONCLUSIVE: 1, FAILED: 2}
    return min(candidates, key=lambda each: (order[each.verdict], -(each.change if each.change is not None else -9e9)))


def _incomparable(comparison: Comparison) -> list[Warning]:
    return [
        Warning(
            code="not_comparable",
            message=f"{difference.key} differs: {difference.values[1]} here, {difference.values[0]} in the baseline",
        )
        for difference in comparison.differences
        if difference.key in _MUST_MATCH
    ]
