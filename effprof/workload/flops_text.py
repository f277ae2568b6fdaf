"""A FLOPs report as tables for a terminal."""

from __future__ import annotations

from tabulate import tabulate

from effprof.workload.flops import FlopsReport

_MEANING = {
    "exact": "attended pairs counted as the mask leaves them",
    "megatron": "T/2 per token where causal; windows ignored",
    "palm": "T per token; windows ignored",
    "6n": "6 x active parameters",
}


def render(report: FlopsReport) -> str:
    """The report in three parts: the model, FLOPs by convention, exact FLOPs by part of the model."""
    parts = [_describe(report), _conventions(report), _breakdown(report)]
    parts += [f"note: {note}" for note in report.architecture.notes]
    return "\n\n".join(parts)


def _describe(report: FlopsReport) -> str:
    architecture = report.architecture
    facts = [f"{architecture.name} ({architecture.family})", f"{_billions(architecture.parameters_total)} parameters"]
    if architecture.experts is not None:
        used, number = architecture.experts
        facts.append(f"{_billions(architecture.parameters_active)} active ({used} of {number} experts)")
    if architecture.positions_per_sample is not None:
        facts.append(f"{architecture.positions_per_sample} positions per image")
    elif report.target_seq is not None:
        facts.append(f"{report.seq:,} source and {report.target_seq:,} target tokens")
    else:
        facts.append(f"{report.seq:,} tokens")
    if architecture.window is not None:
        facts.append(f"window {architecture.window:,}")
    return " · ".join(facts)


def _conventions(report: FlopsReport) -> str:
    per_token = report.flops_per_token
    rows = [
        [name, "" if per_token is None else f"{per_token[name] / 1e9:,.2f}", f"{total / 1e12:,.3f}", _MEANING[name]]
        for name, total in report.by_convention.items()
    ]
    headers = ["convention", "GFLOP per token", "TFLOP per sample", "what it counts"]
    if per_token is None:
        rows, headers = [[row[0], *row[2:]] for row in rows], [headers[0], *headers[2:]]
    return "Training FLOPs (forward + backward)\n" + tabulate(rows, headers, disable_numparse=True)


def _breakdown(report: FlopsReport) -> str:
    rows = [
        [name, f"{flops / 1e12:,.3f}", f"{flops / report.flops_per_sample:.1%}"]
        for name, flops in report.breakdown.items()
    ]
    rows.append(["total", f"{report.flops_per_sample / 1e12:,.3f}", "100.0%"])
    align = ("left", "right", "right")
    headers = ["exact, by part", "TFLOP per sample", "share"]
    return tabulate(rows, headers, disable_numparse=True, colalign=align)


def _billions(number: int) -> str:
    return f"{number / 1e9:,.2f}B" if number >= 1e9 else f"{number / 1e6:,.1f}M"
