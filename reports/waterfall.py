"""The waterfall as text: from the dense peak down to what was used, each bar with the numbers that it is made from."""

from __future__ import annotations

from effprof.analysis.model import Analysis, Bar, Evidence
from effprof.reports import facts
from effprof.reports.text import clean, duration, percent, significant

SMALL_SHARE = 0.0005
_LABELS = {
    "forward_backward": "inside forward + backward",
    "low_efficiency_gemm": "matmuls below peak",
    "memory_bound_gemm": "matmuls bound by memory bandwidth",
    "memory_bound_kernels": "memory-bound kernels",
    "non_matmul": "other non-matmul kernels",
    "clock_derating": "clocks below boost",
    "optimizer": "optimizer",
}
_TOLD = ("account.lines.", "efficiency.mfu", "time computing")
NOT_SPLIT_HINT = "not split: record a kernel window, EfficiencyCallback(kernel_window=True)"


def rows(analysis: Analysis) -> list[tuple[str, float, float, str]]:
    """(label, share lost, share that is left after it, evidence), from the peak down; small bars as one."""
    shown = [bar for bar in analysis.waterfall if bar.share >= SMALL_SHARE]
    small = [bar for bar in analysis.waterfall if bar.share < SMALL_SHARE]
    left, found = 1.0, []
    for bar in shown:
        left -= bar.share
        found.append((label(bar), bar.share, left, evidence(bar)))
    if small and sum(bar.share for bar in small) > 0:
        share = sum(bar.share for bar in small)
        found.append((facts.ALL_OTHERS, share, left - share, ""))
    return found


def label(bar: Bar) -> str:
    """A bar as people say it."""
    return _LABELS.get(bar.name) or facts.line_label(clean(bar.name))


def evidence(bar: Bar) -> str:
    """The bar's seconds and the numbers it rests on, in one line."""
    parts = [duration(bar.seconds)]
    # a line of the account is its own evidence, and what the whole report is about needs no repeating
    parts += [_say(one) for one in bar.evidence if not one.metric.startswith(_TOLD)]
    if bar.name == "forward_backward":
        parts.append(NOT_SPLIT_HINT)
    return " · ".join(parts)


def goodput_text(analysis: Analysis) -> str:
    """Goodput and what took most of the rest."""
    goodput = analysis.goodput
    if goodput.value is None:
        return ""
    largest = sorted(goodput.lost.items(), key=lambda item: -item[1])[:3]
    lost = " · ".join(f"{facts.line_label(name)} {percent(share)}" for name, share in largest if share >= SMALL_SHARE)
    return f"{percent(goodput.value)} of the wall clock in steps that count" + (f"; lost: {lost}" if lost else "")


def _say(one: Evidence) -> str:
    name = one.metric.removeprefix("kernel window: ").rpartition(".")[2].replace("_", " ")
    if one.value is None:
        return f"{name} not measured"
    if one.unit.startswith(("of ", "share")):
        return f"{name} {percent(one.value)}" + (f" {one.unit}" if one.unit == "of model FLOPs" else "")
    threshold = "" if one.threshold is None else f" of {significant(one.threshold)}"
    return f"{name} {significant(one.value)}{threshold} {one.unit}"
