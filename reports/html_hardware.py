"""The parts of the HTML report about the devices: kernels, memory, telemetry."""

from __future__ import annotations

from typing import Any

import msgspec

from effprof.analysis.model import Analysis
from effprof.analysis.timeline_model import TimelineSeries
from effprof.reports import facts
from effprof.reports import kernels as kernel_facts
from effprof.reports import memory as memory_facts
from effprof.reports.html_charts import Charts
from effprof.reports.html_elements import folded, legend, scrolling, section, strip, table, text
from effprof.reports.text import clean, duration, flops, gibibytes, percent

MEMORY_COLORS = {
    "parameters": "--c-forward",
    "gradients": "--c-backward",
    "optimizer": "--c-optimizer",
    "activations": "--c-copy",
    "temporary": "--c-generation",
    "fragmentation": "--c-input",
    "cached_free": "--c-unattributed",
    "non_torch": "--c-startup",
    "other": "--c-other",
}
IDLE_COLORS = {
    "host_bound_s": "--c-lost",
    "input_wait_s": "--c-input",
    "rank_wait_s": "--c-communication",
    "queued_s": "--c-startup",
    "unknown_s": "--c-unattributed",
}
DEVICE_SERIES = ("reserved_bytes", "allocated_bytes", "peak_allocated_bytes", "device_used_bytes")
# Readings in the order in which they tell most.
FIRST_READINGS = ("power", "energy", "clock", "temperature", "util", "memory_used", "percent")
READING_TITLES = {
    "energy_j": "power by the energy counter",
    "process_cpu_s": "processors of the process",
    "process_rss_bytes": "memory of the process",
    "memory_used_bytes": "memory used",
    "cpu_percent": "processor busy",
    "load_1m": "load",
}
MAX_READINGS = 24
MAX_ROWS = 128
KERNEL_COLUMNS = (
    "window_s",
    "compute_s",
    "communication_s",
    "communication_exposed_s",
    "memory_copy_s",
    "memory_copy_exposed_s",
    "idle_s",
)


def kernels(charts: Charts) -> str:
    """What the device did in the recorded kernel window, rank by rank and by family of kernels."""
    found: dict[str, dict[str, Any]] = msgspec.to_builtins(charts.analysis.kernel_account)
    if not found:
        return ""
    rows = [
        (f"rank {rank}", *(duration(one.get(key)) for key in KERNEL_COLUMNS))
        for rank, one in list(found.items())[:MAX_ROWS]
    ]
    heads = ["rank", *(key.removesuffix("_s").replace("_", " ") for key in KERNEL_COLUMNS)]
    rank, first = next(iter(found.items()))
    parts = [
        _window_strip(rank, first),
        _idle_strip(rank, first),
        scrolling(table(heads, rows), "Kernel account, table"),
        _notes(kernel_facts.notes(charts.analysis)),
        _steps(rank, first),
        f"<h3>Kernels of rank {text(rank)} by family</h3>",
        scrolling(_families(first.get("kernels") or {}), "Kernels by family, table"),
    ]
    if first.get("top_kernels"):
        top = [
            (one["name"], one["family"], f"{one['count']:,}", duration(one["total_s"])) for one in first["top_kernels"]
        ]
        shown = table(["kernel", "family", "count", "in all"], top)
        parts.append(folded("Kernels with the most time", scrolling(shown, "Kernels with the most time, table")))
    lead = "The window is compute + exposed communication + exposed copies + idle; overlapping kernels count once."
    return section("kernels", "Inside the kernel window", lead, "".join(parts))


def _window_strip(rank: str, account: dict[str, Any]) -> str:
    """The window of one rank, in the parts that it is the sum of."""
    segments = [
        (name, float(account.get(key) or 0.0), color)
        for name, key, color in (
            ("compute", "compute_s", "--c-forward"),
            ("exposed communication", "communication_exposed_s", "--c-communication"),
            ("exposed copies", "memory_copy_exposed_s", "--c-copy"),
            ("idle", "idle_s", "--c-unattributed"),
        )
    ]
    window_s = sum(seconds for _, seconds, _ in segments)
    if window_s <= 0:
        return ""
    shares = [(name, seconds / window_s, color) for name, seconds, color in segments if seconds > 0]
    return f"<h3>Rank {text(rank)}</h3>{strip(shares)}" + legend(
        (f"{name} {percent(share)}", color) for name, share, color in shares
    )


def _idle_strip(rank: str, account: dict[str, Any]) -> str:
    """Why the device of one rank was idle, as shares of the window."""
    window_s, idle = float(account.get("window_s") or 0.0), account.get("idle") or {}
    shares = [
        (_words(key), float(idle[key]) / window_s, color)
        for key, color in IDLE_COLORS.items()
        if window_s > 0 and (idle.get(key) or 0.0) > 0
    ]
    if not shares:
        return ""
    busy = max(0.0, 1 - sum(share for _, share, _ in shares))
    return f"<h3>Why rank {text(rank)} was idle</h3>{strip([*shares, ('busy', busy, '--grid')])}" + legend(
        (f"{name} {percent(share)}", color) for name, share, color in shares
    )


def _steps(rank: str, account: dict[str, Any]) -> str:
    """The recorded steps of one rank, each in the parts it is the sum of and with the causes of its idle time."""
    steps = account.get("steps") or []
    if not steps:
        return ""
    parts = ("window_s", "compute_s", "communication_exposed_s", "memory_copy_exposed_s", "idle_s")
    rows = [
        (
            str(one["step"]),
            *(duration(one.get(key)) for key in parts),
            *(duration((one.get("idle") or {}).get(key)) for key in IDLE_COLORS),
        )
        for one in steps[:MAX_ROWS]
    ]
    heads = ["step", *map(_words, parts), *(f"idle: {_words(key)}" for key in IDLE_COLORS)]
    shown = scrolling(table(heads, rows), "Recorded steps, table")
    return folded(f"Recorded steps of rank {rank} ({len(steps)})", shown)


def _words(key: str) -> str:
    return key.removesuffix("_s").replace("_", " ")


def _notes(sentences: list[str]) -> str:
    items = "".join(f"<li>{text(sentence, 600)}</li>" for sentence in sentences)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _families(families: dict[str, dict[str, Any]]) -> str:
    ordered = sorted(families.items(), key=lambda item: -(item[1].get("union_s") or 0.0))
    rows = [
        (
            name.replace("_", " "),
            f"{one.get('count', 0):,}",
            duration(one.get("union_s")),
            "–" if one.get("share") is None else percent(one["share"]),
            "–" if one.get("flops_per_s") is None else flops(one["flops_per_s"], "/s"),
            "–" if one.get("bytes_per_s") is None else f"{one['bytes_per_s'] / 1e9:,.0f} GB/s",
            "–" if one.get("roofline_share") is None else percent(one["roofline_share"]),
        )
        for name, one in ordered
    ]
    return table(["family", "kernels", "time", "of window", "achieved", "bandwidth", "of roofline"], rows)


def memory(charts: Charts) -> str:
    """What fills the device, and memory over time."""
    figures_of, timeline = charts.analysis.memory, charts.timeline
    parts = []
    held = _held(charts.analysis)
    if held:
        parts.append(_memory_strip(held, figures_of.device_total_bytes, charts.analysis))
    predicted = memory_facts.prediction_text(charts.analysis)
    parts.append(_notes([f"peak of tensors: {predicted}"] if predicted else []))
    failures = memory_facts.failure_texts(charts.analysis)
    if failures:
        parts.append(f"<h3>When memory ran out</h3>{_notes(failures)}")
    if timeline is not None and timeline.memory:
        chosen = _memory_lines(timeline.memory)
        total = figures_of.device_total_bytes if any(one.name != "process_rss_bytes" for one in chosen) else None
        names = [one.name.removesuffix("_bytes").replace("_", " ").replace("rss", "resident set") for one in chosen]
        source = f" ({chosen[0].source})" if chosen[0].source else ""
        title = f"Memory over time{source}"
        parts.append(charts.lines("memory", title, chosen, names, "bytes", fromZero=True, limit=total, group="steps"))
    if not any(parts):
        return ""
    return section("memory", "Memory", facts.memory_text(charts.analysis), "".join(parts))


def _held(analysis: Analysis) -> list[tuple[str, float, str]]:
    """(name, bytes, color) of what memory held at its peak: the account's lines, else what is known of the states."""
    account, figures = analysis.memory.account, analysis.memory
    names = {"activations": "activations and other"} if account is None or "other" not in account.lines else {}
    sizes = {
        line: account.lines.get(line) if account else getattr(figures, f"{line}_bytes", None) for line in MEMORY_COLORS
    }
    return [
        (names.get(line) or memory_facts.line_label(line), float(size), MEMORY_COLORS[line])
        for line, size in sizes.items()
        if size is not None and size > 0
    ]


def _memory_lines(series: list[TimelineSeries]) -> list[TimelineSeries]:
    """The device's counters where there are any, else the process's resident set."""
    device = [one for one in series if one.name in DEVICE_SERIES]
    return device or series


def _memory_strip(held: list[tuple[str, float, str]], total: int | None, analysis: Analysis) -> str:
    used = sum(size for _, size, _ in held)
    account = analysis.memory.account
    is_on_device = account.basis == "allocator" if account else analysis.memory.peak_allocated_bytes is not None
    free = max(0.0, float(total) - used) if total and is_on_device else 0.0
    segments = [*held, *([("free", free, "--grid")] if free else [])]
    rows = [(name, gibibytes(size), percent(size / (used + free))) for name, size, _ in segments]
    basis = memory_facts.basis_text(analysis)
    return (
        (f"<h3>{text(basis)}</h3>" if basis else "")
        + strip((name, size / (used + free), color) for name, size, color in segments)
        + legend((f"{name} {gibibytes(size)}", color) for name, size, color in segments)
        + folded("Memory as a table", scrolling(table(["part", "size", "share"], rows), "Memory, table"))
    )


def telemetry(charts: Charts) -> str:
    """Readings of devices and hosts over time, and their summary."""
    rows = facts.telemetry_rows(charts.analysis)
    series = charts.timeline.telemetry if charts.timeline is not None else []
    if not rows and not series:
        return ""
    readings: dict[str, list[TimelineSeries]] = {}
    for one in series:
        if one.at_s:
            readings.setdefault(one.name, []).append(one)
    ordered = sorted(readings, key=lambda name: (_rank_of(name), name))
    drawn = []
    for number, name in enumerate(ordered[:MAX_READINGS]):
        found = readings[name]
        unit = {"percent": "%"}.get(found[0].unit, found[0].unit)
        title = READING_TITLES.get(name) or name.removesuffix(f"_{found[0].unit.lower()}").removesuffix(
            "_bytes"
        ).replace("_", " ")
        owner = f" · {found[0].source}" if len(found) == 1 else ""
        more: dict[str, Any] = {"small": True, "fromZero": "temperature" not in name and "clock" not in name}
        if unit == "%":
            more["limit"] = 100
        drawn.append(
            charts.lines(
                f"reading{number}", clean(f"{title}{owner}", 80), found, [one.source for one in found], unit, **more
            )
        )
    inner = f'<div class="multiples">{"".join(drawn)}</div>' if drawn else ""
    summary = table(["device", "reading", "mean", "lowest", "highest"], rows[:512], text_columns=(2,))
    inner += folded(f"All readings ({len(rows)})", scrolling(summary, "All readings, table"))
    return section(
        "telemetry",
        "Telemetry",
        "Counters are shown as rates. Utilisation is residency: that something ran, not how well.",
        inner,
    )


def _rank_of(reading: str) -> int:
    return next((i for i, part in enumerate(FIRST_READINGS) if part in reading), len(FIRST_READINGS))
