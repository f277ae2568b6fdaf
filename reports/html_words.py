"""The parts of the HTML report that are words and figures: what a reader looks for first, and what the run was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effprof.analysis.model import Analysis
from effprof.reports import facts
from effprof.reports.html_charts import Charts
from effprof.reports.html_elements import pairs, section, text
from effprof.reports.text import clean, duration, flops, gibibytes, half_width, percent, plural, rate, significant


def figures(analysis: Analysis) -> str:
    """The figures that a reader looks for first."""
    efficiency, share = analysis.efficiency, analysis.efficiency.mfu
    name = "Share of measured ceiling" if facts.is_ceiling(share) else "MFU"
    if share.value is None:
        main = _figure(name, "not measured", facts.mfu_reason(analysis), "main", is_missing=True)
    else:
        # "±" is read as a word of its own, so that the figure is not taken for two
        main = _figure(
            name, f"{percent(share.value)}", _mfu_note(analysis), "main", small=half_width(share.ci95, 100).strip()
        )
    cards = [main, _throughput(analysis), _step(analysis), _goodput(analysis), _memory_figure(analysis)]
    others = facts.conventions_text(analysis)
    rest = pairs(
        [
            ("other conventions", others),
            ("model FLOPs", facts.model_flops_text(analysis)),
            ("padding", "" if efficiency.padding_share is None else percent(efficiency.padding_share)),
            ("steady part", " · ".join(map(clean, efficiency.steps.rules))),
        ]
    )
    more = f'<div class="card" style="margin-top:14px">{rest}</div>' if rest else ""
    return (
        '<section id="summary" aria-labelledby="summary-h"><h2 id="summary-h" class="sr">Key figures</h2>'
        f'<div class="figures">{"".join(cards)}</div>{more}</section>'
    )


def _figure(name: str, value: str, note: str, kind: str = "", *, small: str = "", is_missing: bool = False) -> str:
    missing = " missing" if is_missing else ""
    extra = f" <small>{text(small)}</small>" if small else ""
    return (
        f'<div class="card {kind}"><dl><dt>{text(name)}</dt><dd><div class="value{missing}">{text(value)}{extra}</div>'
        f'<div class="note">{text(note, 600)}</div></dd></dl></div>'
    )


def _mfu_note(analysis: Analysis) -> str:
    share = analysis.efficiency.mfu
    source = clean(share.peak_source or "source unknown").split(": http")[0]
    interval = ""
    if share.ci95 is not None:
        interval = f"95 % interval {percent(share.ci95[0])} to {percent(share.ci95[1])}; "
    dense = "" if facts.is_ceiling(share) else "dense "
    return (
        f"{interval}convention {share.convention}, of {flops(share.peak_flops_per_s, '/s')} {dense}{share.dtype or ''} "
        f"per device ({source})"
    )


def _throughput(analysis: Analysis) -> str:
    efficiency = analysis.efficiency
    found = efficiency.tokens_per_s
    if found.median is None:
        samples = efficiency.samples_per_s.median
        if samples is None:
            return _figure("Throughput", "not measured", "tokens were not counted", is_missing=True)
        return _figure("Throughput", significant(samples), "samples/s, median of the steady steps", small="samples/s")
    parts = []
    if analysis.run.world_size > 1 and efficiency.tokens_per_s_per_device.median is not None:
        parts.append(f"{significant(efficiency.tokens_per_s_per_device.median)} per device")
    if found.p5 is not None:
        parts.append(f"slow steps (5th percentile) {significant(found.p5)}")
    if efficiency.samples_per_s.median is not None:
        parts.append(rate(efficiency.samples_per_s.median, "samples/s"))
    return _figure("Throughput", significant(found.median), " · ".join(parts), small="tokens/s")


def _step(analysis: Analysis) -> str:
    step, counts = analysis.efficiency.step_time_s, analysis.efficiency.steps
    steps = f"{plural(counts.total, 'step')}, {counts.steady:,} steady"
    if step.median is None:
        return _figure("Step time", "not measured", steps, is_missing=True)
    return _figure("Step time", duration(step.median), f"median · p95 {duration(step.p95)} · {steps}")


def _goodput(analysis: Analysis) -> str:
    value = analysis.goodput.value
    if value is None:
        return _figure("Goodput", "not measured", "no finished step is on record", is_missing=True)
    lost = max(analysis.goodput.lost.items(), key=lambda item: item[1], default=None)
    note = f"of {duration(analysis.account.wall_s)} in steps whose result was kept"
    if lost is not None and lost[1] > 0:
        note += f"; most lost to {facts.line_label(lost[0])} ({percent(lost[1])})"
    return _figure("Goodput", percent(value), note)


def _memory_figure(analysis: Analysis) -> str:
    memory = analysis.memory
    used = memory.peak_reserved_bytes or memory.peak_allocated_bytes
    if used is None:
        if memory.process_rss_bytes is None:
            return _figure("Memory", "not measured", "no allocator counters in the log", is_missing=True)
        return _figure("Memory", gibibytes(memory.process_rss_bytes), "resident set of the largest training process")
    total = memory.device_total_bytes
    note = f"peak on the fullest device, of {gibibytes(total)} ({percent(used / total)})" if total else "peak"
    return _figure("Device memory", gibibytes(used), note)


def warnings(charts: Charts) -> str:
    """What a reader of the numbers should know."""
    found = charts.analysis.warnings
    if not found:
        return ""
    items = "".join(f"<li>{text(one.message, 1000)} <code>{text(one.code, 80)}</code></li>" for one in found)
    return section("warnings", "Warnings", "", f'<ul class="warnings">{items}</ul>', is_card=False)


def details(charts: Charts) -> str:
    """What the run was: hardware, settings, software, command."""
    run, hardware = charts.analysis.run, charts.analysis.hardware
    groups = [
        (
            "Hardware",
            {"devices": facts.devices(charts.analysis), "hosts": ", ".join(hardware.hosts[:16]), **_rates(charts)},
        ),
        ("Model", run.model),
        ("Settings", run.config),
        ("Parallel layout", run.parallel),
        ("Software", run.software),
        ("FLOPs", {key: value for key, value in run.flops.items() if key != "conventions"}),
        ("Run", {"path": run.path, "command": " ".join(run.command)}),
    ]
    entries = {
        name: [(clean(str(key).replace("_", " "), 80), _plain(key, value)) for key, value in values.items()]
        for name, values in groups
    }
    shown = "".join(
        f"<div><h3>{name}</h3>{pairs(found)}</div>"
        for name, found in entries.items()
        if any(value for _, value in found)
    )
    return section("details", "The run", "", f'<div class="facts">{shown}</div>')


def _rates(charts: Charts) -> dict[str, str]:
    hardware, share = charts.analysis.hardware, charts.analysis.efficiency.mfu
    bandwidth, link = hardware.memory_bandwidth_bytes_per_s, hardware.interconnect_bytes_per_s
    return {
        "peak": "" if share.peak_flops_per_s is None else f"{flops(share.peak_flops_per_s, '/s')} {share.dtype or ''}",
        "source of the peak": share.peak_source or "",
        "memory bandwidth": f"{bandwidth / 1e9:,.0f} GB/s" if bandwidth else "",
        "interconnect": f"{link / 1e9:,.0f} GB/s" if link else "",
    }


def _plain(key: object, value: Any) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(k, v)}" for k, v in list(value.items())[:24])
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(key, item) for item in value[:24])
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if str(key).endswith("_bytes"):
            return gibibytes(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return str(value)
