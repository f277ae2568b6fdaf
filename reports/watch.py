"""A run as it does now: some lines for a terminal, redrawn in place, or one line a look for a log."""

from __future__ import annotations

import msgspec

from effprof.analysis.current import Watch
from effprof.reports.text import WIDTH, bar, clean, duration, percent, significant, wrap

# Readings that a glance should hold, in this order, with their unit.
_READINGS = (
    ("power_w", "W"),
    ("utilization_percent", "% busy"),
    ("sm_clock_mhz", "MHz"),
    ("temperature_c", "°C"),
    ("cpu_percent", "% CPU"),
)
MAX_DEVICES = 8
MAX_PHASES = 8


def as_json(watch: Watch) -> str:
    """One line of JSON (effprof.watch/1)."""
    return msgspec.json.encode(watch).decode()


def line(watch: Watch) -> str:
    """One line for where nothing can be redrawn."""
    parts = [
        _state(watch),
        f"step {_steps(watch)}",
        f"MFU {percent(watch.mfu.value)}",
        f"{_number(watch.tokens_per_s.median)} tokens/s",
        f"{duration(watch.step_time_s.median)} a step",
    ]
    if watch.loss is not None:
        parts.append(f"loss {watch.loss:.4g}")
    return " · ".join(parts)


def render(watch: Watch) -> str:
    """The view, at most `WIDTH` columns wide."""
    rows = [
        _row("run", f"{clean(watch.id)} · {clean(watch.framework)} · attempt {watch.attempt} · {_ranks(watch)}"),
        _row("state", f"{_state(watch)} · step {_steps(watch)} · last record {duration(watch.age_s)} ago"),
        *_mfu(watch),
        _row("throughput", _throughput(watch)),
        _row("step", _step(watch)),
        _row("memory", f"{_bytes(watch.memory_bytes)} · peak {_bytes(watch.peak_memory_bytes)}"),
    ]
    if watch.ranks.longest_wait_rank is not None:
        wait = duration(watch.ranks.longest_wait_s)
        rows.append(_row("ranks", f"rank {watch.ranks.longest_wait_rank} waits longest for batches: {wait} a step"))
    rows += ["", f"where the last {watch.window_steps} steps' time goes"]
    largest = sorted(watch.phases.items(), key=lambda pair: -pair[1])[:MAX_PHASES]
    rows += [f"  {name.replace('_', ' '):<22}{percent(share):>8}  {bar(share)}" for name, share in largest]
    rows += _devices(watch)
    if watch.events:
        rows += ["", "lately", *(f"  {clean(event, WIDTH - 2)}" for event in watch.events)]
    for warning in watch.warnings:
        rows += wrap(f"{clean(warning.message)} [{clean(warning.code)}]", "warning")
    return "\n".join(rows)


def _row(label: str, text: str) -> str:
    return f"{label:<12}{text}"[:WIDTH]


def _state(watch: Watch) -> str:
    return watch.ended + (f" ({clean(watch.ended_reason, 60)})" if watch.ended_reason else "")


def _steps(watch: Watch) -> str:
    reached = "–" if watch.step is None else f"{watch.step:,}"
    return f"{reached} of {watch.max_steps:,}" if watch.max_steps else reached


def _ranks(watch: Watch) -> str:
    ranks = watch.ranks
    text = f"{ranks.reporting} of {ranks.world_size} ranks" if ranks.world_size > 1 else "1 rank"
    return f"{text}, {ranks.behind_steps} steps apart" if ranks.behind_steps > 1 else text


def _mfu(watch: Watch) -> list[str]:
    share = watch.mfu
    if share.value is None:
        return [_row("MFU", "not known; the warnings say why")]
    width = f" ± {100 * (share.ci95[1] - share.ci95[0]) / 2:.1f}" if share.ci95 else ""
    peak = f"{(share.peak_flops_per_s or 0) / 1e12:,.4g} TFLOP/s {share.dtype or ''}".strip()
    return wrap(f"{percent(share.value)}{width} · {share.convention}, of {peak} ({clean(share.peak_source)})", "MFU")


def _throughput(watch: Watch) -> str:
    parts = [f"{_number(watch.tokens_per_s.median)} tokens/s"]
    if watch.ranks.world_size > 1:
        parts.append(f"{_number(watch.tokens_per_s_per_device.median)} per device")
    parts.append(f"{_number(watch.samples_per_s.median)} samples/s")
    return " · ".join(parts)


def _step(watch: Watch) -> str:
    times = watch.step_time_s
    loss = f" · loss {watch.loss:.4g}" if watch.loss is not None else ""
    return f"last {duration(times.last)} · median {duration(times.median)} · p95 {duration(times.p95)}{loss}"


def _devices(watch: Watch) -> list[str]:
    rows = []
    for device in watch.devices:
        known = [f"{value:,.0f} {unit}" for name, unit in _READINGS if (value := device.readings.get(name)) is not None]
        used, total = device.readings.get("memory_used_bytes"), device.readings.get("memory_total_bytes")
        if used is not None:
            known.append(f"{_bytes(int(used))}{f' of {_bytes(int(total))}' if total else ''}")
        if known:
            rows.append(f"  {clean(device.device, 24):<24}  {' · '.join(known)}"[:WIDTH])
    if not rows:
        return []
    more = [f"  … {len(rows) - MAX_DEVICES} more"] if len(rows) > MAX_DEVICES else []
    return ["", "devices", *rows[:MAX_DEVICES], *more]


def _number(value: float | None) -> str:
    return "–" if value is None else significant(value)


def _bytes(value: int | None) -> str:
    return "not measured" if value is None else f"{value / 2**30:.2f} GiB"
