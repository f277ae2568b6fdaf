"""The parts of the HTML report in the order of the page; one without data leaves itself out or says what to record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from effprof.analysis.model import Analysis
from effprof.analysis.timeline_model import TimelineEvent
from effprof.reports import facts
from effprof.reports.html_charts import Charts, steady_top
from effprof.reports.html_elements import folded, scrolling, section, strip, table, text
from effprof.reports.html_findings import findings
from effprof.reports.html_hardware import kernels, memory, telemetry
from effprof.reports.html_words import details, warnings
from effprof.reports.text import clean, duration, flops, percent, plural, significant

ACCOUNT_COLORS = {
    "startup": "--c-startup",
    "compile": "--c-lost",
    "step.input_wait": "--c-input",
    "step.host_to_device": "--c-copy",
    "step.forward": "--c-forward",
    "step.backward": "--c-backward",
    "step.optimizer": "--c-optimizer",
    "step.generation": "--c-generation",
    "step.exposed_communication": "--c-communication",
    "step.pipeline_bubble": "--c-communication",
    "step.host_gap": "--c-lost",
    "evaluation": "--c-evaluation",
    "checkpoint": "--c-checkpoint",
    "effprof": "--c-effprof",
    "restart": "--c-startup",
    "lost_steps": "--c-lost",
    "unattributed": "--c-unattributed",
}
OTHER_COLOR = "--c-other"
MAX_ROWS = 128
MAX_EVENTS = 60
BAR_NAMES = {
    "forward_backward": "forward + backward below peak",
    "low_efficiency_gemm": "matmuls below peak",
    "memory_bound_gemm": "matmuls bound by memory bandwidth",
}
# Bars of the waterfall under this share of the peak are drawn as one.
SMALL_BAR = 0.0005


def waterfall(charts: Charts) -> str:
    """From the dense peak over the whole wall clock down to what was used of it, bar by bar."""
    bars = waterfall_bars(charts.analysis)
    if not bars:
        return ""
    lead = (
        f"All that the devices could have done in {duration(charts.analysis.account.wall_s)}, less each loss, "
        "is what the model got. A bar's tooltip and the table name the evidence."
    )
    return section("waterfall", "Where the peak went", lead, charts.waterfall(bars))


def waterfall_bars(analysis: Analysis) -> list[dict[str, Any]]:
    """Bars with where they float: losses hang below what is left, the first and the last stand on the ground."""
    found, used = analysis.waterfall, analysis.efficiency.mfu_wall
    if not found or used.value is None:
        return []
    is_ceiling = facts.is_ceiling(used)
    wall_s = analysis.account.wall_s
    peak = [
        "evidence",
        f"{flops(used.peak_flops_per_s, '/s')} per device ({clean(used.peak_source or 'source unknown')})",
    ]
    bars = [_bar("measured ceiling" if is_ceiling else "dense peak", "total", 0.0, 1.0, wall_s, peak)]
    left, small = 1.0, 0.0
    for loss in found:
        if loss.share < SMALL_BAR:
            small += loss.share
            continue
        left -= loss.share
        evidence = "; ".join(f"{one.metric} {_value(one.value)} {one.unit}".strip() for one in loss.evidence)
        name = BAR_NAMES.get(loss.name) or facts.line_label(loss.name)
        bars.append(_bar(name, "loss", left, loss.share, loss.seconds, ["evidence", clean(evidence, 400)]))
    if small >= SMALL_BAR:
        left -= small
        bars.append(_bar(facts.ALL_OTHERS, "loss", left, small, small * wall_s, ["evidence", "too small to draw"]))
    name = "share of ceiling" if is_ceiling else "MFU"
    about = ["evidence", f"model FLOPs over the whole wall clock, {used.convention}"]
    bars.append(_bar(f"{name}, wall clock", "result", 0.0, used.value, used.value * wall_s, about))
    return bars


def _bar(name: str, kind: str, start: float, size: float, seconds: float, evidence: list[str]) -> dict[str, Any]:
    shown = percent(size) if kind != "loss" else f"−{percent(size)}"
    rows = [["share", percent(size)], ["time", duration(seconds)], evidence]
    return {
        "name": clean(name, 60),
        "kind": kind,
        "from": round(max(0.0, start), 6),
        "size": round(size, 6),
        "text": shown,
        "rows": rows,
    }


def _value(value: float | None) -> str:
    return "–" if value is None else significant(value)


def account(charts: Charts) -> str:
    """Every second of wall clock, as bars."""
    analysis = charts.analysis
    rows = facts.account_rows(analysis)
    largest = max((share for _, _, share in rows), default=1.0) or 1.0
    colors = {name: ACCOUNT_COLORS.get(name, OTHER_COLOR) for name, _, _ in rows}
    segments = strip((facts.line_label(name), share, colors[name]) for name, _, share in rows)
    lines = "".join(
        f'<tr><th scope="row">{text(facts.line_label(name))}</th><td>{percent(share)}</td>'
        f'<td>{text(duration(seconds))}</td><td class="bar-cell"><div class="bar" '
        f'style="width:{100 * share / largest:.2f}%;background:var({colors[name]})"></div></td></tr>'
        for name, seconds, share in rows
    )
    basis = {"host": "the training thread's clock", "device": "device events", "kernel": "a kernel window"}
    lead = f"All of {duration(analysis.account.wall_s)}, by {basis.get(analysis.account.basis, analysis.account.basis)}"
    lead += f", mean over {plural(len(analysis.ranks), 'rank')}." if len(analysis.ranks) > 1 else "."
    return section(
        "account",
        "Where the time went",
        lead,
        f'{segments}<table class="account"><thead><tr>'
        '<th scope="col">line</th><th scope="col">share</th><th scope="col">time</th>'
        f'<th scope="col"><span class="sr">bar</span></th></tr></thead><tbody>{lines}</tbody></table>',
    )


def steps(charts: Charts) -> str:
    """Step time, rate, loss and phases over time, with what happened meanwhile."""
    timeline = charts.timeline
    if timeline is None or not timeline.at_s:
        return ""
    events = [
        {"kind": event.kind, "at": event.at_s, "until": event.until_s}
        for event in timeline.events
        if event.kind != "attempt" or event.at_s > 0
    ]
    parts = [
        charts.band(
            "step_time",
            "Step time",
            timeline.step_time_s,
            "s",
            "--c-forward",
            events=events,
            zoom=True,
            fromZero=True,
            top=steady_top(timeline, [timeline.step_time_s.high]),
            marks=dict.fromkeys(str(event["kind"]) for event in events),
        )
    ]
    parts.append(_event_table(timeline.events, timeline.events_total))
    if any(share is not None for share in timeline.mfu):
        name = "Share of measured ceiling" if facts.is_ceiling(charts.analysis.efficiency.mfu) else "MFU"
        found = type(timeline.step_time_s)(median=timeline.mfu)
        parts.append(charts.band("mfu", name, found, "share", "--c-backward", fromZero=True))
    if timeline.tokens_per_s is not None:
        parts.append(
            charts.band("tokens", "Tokens per second", timeline.tokens_per_s, "tokens/s", "--c-copy", fromZero=True)
        )
    if timeline.loss is not None:
        parts.append(charts.band("loss", "Loss", timeline.loss, "", "--c-optimizer"))
    if timeline.phases_s:
        parts.append(charts.phases())
    lead = "Lines are medians, shades reach from the lowest to the highest step of each bin; the slider zooms. "
    lead += "The scale is that of the steady steps: slower ones of the warm-up leave it at the top."
    return section("steps", "Steps over time", lead, "".join(parts))


def _event_table(events: list[TimelineEvent], totals: dict[str, int]) -> str:
    longest = sorted(events, key=lambda event: event.at_s - (event.until_s or event.at_s))[:MAX_EVENTS]
    rows = [
        (
            duration(event.at_s),
            event.kind,
            "–" if event.until_s is None else duration(event.until_s - event.at_s),
            event.label,
            event.source,
        )
        for event in sorted(longest, key=lambda event: event.at_s)
    ]
    count = sum(
        max(totals.get(kind, 0), sum(event.kind == kind for event in events)) for kind in {e.kind for e in events}
    )
    caption = f"the {len(rows)} longest of {count:,}" if count > len(rows) else ""
    inner = table(["at", "event", "lasted", "what", "seen by"], rows, caption=caption, text_columns=(3,))
    return folded(f"Events ({count:,})", scrolling(inner, "Events, table"))


def experts(charts: Charts) -> str:
    """How evenly the experts of a mixture of experts are loaded."""
    if charts.analysis.moe is None:
        return ""
    heads = ["layer", "experts", "busiest ÷ mean", "least ÷ mean", "per batch", "dropped"]
    rows = facts.expert_rows(charts.analysis, MAX_ROWS)
    inner = charts.experts() + folded("Imbalance by layer", scrolling(table(heads, rows), "Imbalance by layer"))
    return section("experts", "Expert load", facts.experts_text(charts.analysis), inner)


def ranks(charts: Charts) -> str:
    """Ranks side by side and over time."""
    analysis, timeline = charts.analysis, charts.timeline
    if len(analysis.ranks) < 2:
        return ""
    parts = []
    if timeline is not None and timeline.ranks is not None:
        options = "".join(
            f'<option value="{text(name)}">{text("step time" if name == "step" else name.replace("_", " "))}</option>'
            for name in timeline.ranks.values_s
        )
        parts.append(
            '<div class="controls"><label for="rank-metric">Show</label>'
            f'<select id="rank-metric" data-for="ranks">{options}</select></div>'
        )
        parts.append(charts.ranks())
    heads = ["rank", "host", "device", "steps", "step", "tokens/s", "input wait", "forward", "backward"]
    shown = table(heads, facts.rank_rows(analysis, MAX_ROWS))
    parts.append(folded(f"{plural(len(analysis.ranks), 'rank')}, slowest first", scrolling(shown, "Ranks, table")))
    spread = " · ".join(facts.spread_texts(analysis)) or "The ranks lie within 2 % of each other."
    return section("ranks", "Ranks", spread, "".join(parts))


SECTIONS: tuple[tuple[str, str, Callable[[Charts], str]], ...] = (
    ("waterfall", "Waterfall", waterfall),
    ("account", "Time", account),
    ("findings", "Findings", findings),
    ("steps", "Steps", steps),
    ("kernels", "Kernels", kernels),
    ("memory", "Memory", memory),
    ("experts", "Experts", experts),
    ("ranks", "Ranks", ranks),
    ("telemetry", "Telemetry", telemetry),
    ("warnings", "Warnings", warnings),
    ("details", "The run", details),
)
