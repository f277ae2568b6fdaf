"""The cells of a comparison that the terminal and the Markdown report share."""

from __future__ import annotations

from typing import Any

from effprof.analysis.compare import ComparedRun, Comparison, Metric, Ratio
from effprof.reports.facts import line_label
from effprof.reports.text import NOT_MEASURED, clean, duration, flops, gibibytes, percent, significant

LABELS = {
    "step_time_s": "step time",
    "tokens_per_step": "tokens a step",
    "tokens_per_s": "tokens/s",
    "samples_per_s": "samples/s",
    "tokens_per_s_per_device": "tokens/s per device",
    "samples_per_s_per_device": "samples/s per device",
    "model_flops_per_s_per_device": "model FLOP/s per device",
    "mfu": "MFU (of peak)",
    "mfu_wall": "MFU over wall clock",
    "hfu": "HFU",
    "tokens_per_s_per_peak_tflops": "tokens/s per peak TFLOP/s",
    "tokens_per_s_per_bandwidth_tb_per_s": "tokens/s per TB/s bandwidth",
    "padding_share": "padding",
    "peak_reserved_bytes": "device memory reserved",
    "process_rss_bytes": "process memory",
}
SAME = "no significant difference"


def names(comparison: Comparison) -> list[str]:
    """Short names of the runs, for column heads: A, B, C … (then R27, R28 …)."""
    return [chr(ord("A") + i) if i < 26 else f"R{i + 1}" for i in range(len(comparison.runs))]


def describe(run: ComparedRun) -> str:
    """A run in a line."""
    return f"{clean(run.model)} · {run.devices} × {clean(run.device)} · {run.ended} · {clean(run.path)}"


def difference_rows(comparison: Comparison) -> list[list[str]]:
    """Setting, then its value in every run."""
    return [[clean(d.key, 60), *(_setting(d.key, value) for value in d.values)] for d in comparison.differences]


def metric_rows(comparison: Comparison) -> list[list[str]]:
    """Figure, then its value in every run with ratio, interval and verdict; figures that no run has are left out."""
    return [
        [
            LABELS.get(metric.name, metric.name),
            *(
                _cell(metric, value, ratio, is_first=index == 0)
                for index, (value, ratio) in enumerate(zip(metric.values, metric.ratios, strict=True))
            ),
        ]
        for metric in comparison.metrics
        if any(value is not None for value in metric.values)
    ]


def account_rows(comparison: Comparison) -> list[list[str]]:
    """Line of the time account, then its share in every run."""
    return [
        [line_label(row.line), *("–" if share is None else percent(share) for share in row.shares)]
        for row in comparison.account
    ]


def value_text(metric: Metric, value: float | None) -> str:
    """A figure with its unit."""
    if value is None:
        return NOT_MEASURED
    if metric.unit == "s":
        return duration(value)
    if metric.unit == "share":
        return percent(value)
    if metric.unit == "bytes":
        return gibibytes(value)
    if metric.unit == "FLOP/s":
        return flops(value, "/s")
    return significant(value)


def _cell(metric: Metric, value: float | None, ratio: Ratio, *, is_first: bool) -> str:
    text = value_text(metric, value)
    if is_first or ratio.value is None:
        return text
    text += f" ×{ratio.value:.3f}"
    if ratio.ci95 is not None:
        text += f" ({ratio.ci95[0]:.3f} … {ratio.ci95[1]:.3f})"
    return f"{text}\n{SAME}" if ratio.is_different is False else text


def _setting(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (int, float)) and key.endswith("_bytes"):
        return gibibytes(value)
    if isinstance(value, (int, float)) and key.endswith("flops_per_s"):
        return flops(value, "/s")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return clean(", ".join(map(str, value)))
    return clean(value)
