"""The sentences about a run that the terminal and the Markdown report share: each number with its unit and source."""

from __future__ import annotations

from typing import Any

from effprof.analysis.model import Analysis, Share, Warning
from effprof.reports.text import (
    NOT_MEASURED,
    clean,
    duration,
    flops,
    gibibytes,
    half_width,
    percent,
    plural,
    rate,
    significant,
)

# Warnings that say why MFU is missing, most telling first.
MFU_REASONS = ("mfu_above_peak", "no_flops", "no_counts", "no_peak", "too_few_steps")
# Lines of the account under this share are summed into one.
SMALL_SHARE = 0.0005
ALL_OTHERS = "all others"


def headline(analysis: Analysis) -> str:
    """Model, framework, devices, parallelism, dtype and steps."""
    run, steps = analysis.run, analysis.efficiency.steps
    parts = [
        clean(run.model.get("name") or run.model.get("class") or run.id),
        clean(f"{framework_name(run.framework)} {run.framework_version}"),
        devices(analysis),
    ]
    strategy = run.parallel.get("strategy") or run.config.get("strategy")
    if strategy and run.world_size > 1:
        name = str(strategy).removesuffix("Strategy")
        parts.append(clean(f"{name} {run.parallel.get('data_parallel_size') or run.world_size}"))
    precision = run.config.get("precision") or analysis.efficiency.mfu.dtype
    if precision:
        parts.append(clean(precision))
    repeated = f", {steps.repeated:,} repeated" if steps.repeated else ""
    parts.append(f"{plural(steps.total, 'step')}, {steps.steady:,} steady{repeated}")
    return " · ".join(part for part in parts if part)


def framework_name(framework: str) -> str:
    """How people call the framework."""
    name = framework.lower().replace("-", "_")
    if name in ("pytorch_lightning", "lightning", "lightning.pytorch"):
        return "Lightning"
    return {"pytorch": "PyTorch", "fabric": "Fabric"}.get(name, framework)


def devices(analysis: Analysis) -> str:
    """Devices of the job by kind, with their number."""
    groups = analysis.hardware.devices
    if len(groups) == 1:
        if any(warning.code == "devices_unknown" for warning in analysis.warnings):
            return f"unknown number of {clean(groups[0].name)}"
        return f"{analysis.run.world_size} × {clean(groups[0].name)}"
    return " + ".join(f"{group.count} × {clean(group.name)}" for group in groups)


def ending(analysis: Analysis) -> str:
    """How the run ended, when, and in how many attempts."""
    run = analysis.run
    text = f"{run.ended}"
    if run.ended_reason:
        text += f": {clean(run.ended_reason)}"
    if run.attempts > 1:
        text += f" · {plural(run.attempts, 'attempt')}"
    return f"{text} · {clean(run.id)} · began {clean(run.started_at)}"


def source_text(analysis: Analysis) -> str:
    """Which tool's log it was and what that claims; empty for effprof's own runs."""
    source = analysis.source
    if source is None:
        return ""
    claimed = source.claimed
    unit = "tokens/s per device" if claimed.tokens_per_s_scope == "device" else "tokens/s"
    claims = [
        "" if claimed.mfu is None else f"MFU {percent(claimed.mfu)}",
        "" if claimed.tflops_per_device is None else f"{significant(claimed.tflops_per_device)} TFLOP/s per device",
        "" if claimed.tokens_per_s is None else rate(claimed.tokens_per_s, unit),
    ]
    said = " · ".join(claim for claim in claims if claim) or "no rates"
    return f"log of {clean(source.format)}, {plural(source.steps, 'record')}, which claims: {said}"


def is_ceiling(share: Share) -> bool:
    """Whether the peak is what this very device was measured to do, so that the share is no MFU in the usual sense."""
    return share.peak_kind == "measured_ceiling"


def mfu_text(analysis: Analysis, is_short: bool = False) -> str:
    """MFU with interval, convention, peak and source, or why there is none; short leaves out how it was measured."""
    share = analysis.efficiency.mfu
    if share.value is None:
        return f"{NOT_MEASURED}: {mfu_reason(analysis)}"
    of = f"of {flops(share.peak_flops_per_s, '/s')}"
    # the address of the datasheet is in --json
    source = clean(share.peak_source or "source unknown").split(": http")[0]
    if is_ceiling(share):
        how = "" if is_short else source.removeprefix("measured ceiling").removeprefix(": ")
        rest = f"share of measured ceiling, exact, {of} {share.dtype or ''} {f'({how})' if how else ''}"
    else:
        rest = f"exact, {of} dense {share.dtype or ''} ({source})"
    return f"{percent(share.value)}{half_width(share.ci95, 100)} · {' '.join(rest.split())}"


def mfu_reason(analysis: Analysis) -> str:
    """Why there is no MFU, and what supplies it."""
    for code in MFU_REASONS:
        for warning in analysis.warnings:
            if warning.code == code:
                return clean(warning.message)
    return "see the warnings"


def conventions_text(analysis: Analysis) -> str:
    """The other conventions, HFU and the wall clock's MFU; only what is known."""
    efficiency = analysis.efficiency
    figures = efficiency.conventions
    parts = [
        f"{name} {percent(share)}"
        for name, share in (("palm", figures.palm.mfu), ("megatron", figures.megatron.mfu), ("6N", figures.six_n.mfu))
        if share is not None
    ]
    if efficiency.hfu.value is not None:
        parts.append(f"HFU {percent(efficiency.hfu.value)}")
    if efficiency.mfu_wall.value is not None:
        parts.append(f"over the whole wall clock {percent(efficiency.mfu_wall.value)}")
    return " · ".join(parts)


def model_flops_text(analysis: Analysis) -> str:
    """Model FLOPs per step and token, and the rate per device."""
    exact = analysis.efficiency.conventions.exact
    if exact.flops_per_step is None:
        return ""
    parts = [f"{flops(exact.flops_per_step)} a step"]
    if exact.flops_per_token is not None:
        parts.append(f"{flops(exact.flops_per_token)} a token")
    achieved = analysis.efficiency.model_flops_per_s_per_device
    if achieved.median is not None:
        parts.append(f"{flops(achieved.median, '/s')} per device")
    parts.append(_provenance(analysis.run.flops))
    return " · ".join(parts)


def _provenance(record: dict[str, Any]) -> str:
    """Where the FLOPs come from."""
    source, difference = record.get("source"), (record.get("counts") or {}).get("difference")
    if source == "given" or not source:
        return "as given" if source else "source unknown"
    if isinstance(difference, (int, float)):
        return f"two counts, {percent(abs(difference), 2)} apart"
    return f"by {clean(source).replace('_', ' ')} alone"


def throughput_text(analysis: Analysis) -> str:
    """Rates, step time and padding."""
    efficiency = analysis.efficiency
    parts = []
    if efficiency.tokens_per_s.median is not None:
        parts.append(rate(efficiency.tokens_per_s.median, "tokens/s"))
        if analysis.run.world_size > 1:
            parts.append(f"{significant(efficiency.tokens_per_s_per_device.median or 0.0)} per device")
    if efficiency.samples_per_s.median is not None:
        parts.append(rate(efficiency.samples_per_s.median, "samples/s"))
    parts.append(step_text(analysis))
    if efficiency.padding_share is not None:
        parts.append(f"padding {percent(efficiency.padding_share)}")
    return " · ".join(parts)


def step_text(analysis: Analysis) -> str:
    """Median and 95th percentile of the step time."""
    step = analysis.efficiency.step_time_s
    if step.median is None:
        return f"step time {NOT_MEASURED}"
    return f"step {duration(step.median)}, p95 {duration(step.p95)}"


def memory_text(analysis: Analysis) -> str:
    """Device memory in use and what holds it, or the process's resident set."""
    memory = analysis.memory
    host = "" if memory.process_rss_bytes is None else f"process {gibibytes(memory.process_rss_bytes)} resident"
    held = [
        f"{name} {gibibytes(size)}"
        for name, size in (
            ("parameters", memory.parameters_bytes),
            ("gradients", memory.gradients_bytes),
            ("optimizer", memory.optimizer_bytes),
            ("activations and other" if memory.temporary_bytes is None else "activations", memory.activations_bytes),
            ("temporary", memory.temporary_bytes),
            ("cached", memory.cached_free_bytes),
            ("fragmentation", memory.fragmentation_bytes),
            ("beside the allocator", memory.non_torch_bytes),
        )
        if size is not None
    ]
    used = memory.peak_reserved_bytes or memory.peak_allocated_bytes
    if used is None:
        return " · ".join(part for part in [f"device {NOT_MEASURED}", host, *held] if part)
    total = memory.device_total_bytes
    head = f"{gibibytes(used)} of {gibibytes(total)}" if total else gibibytes(used)
    retries = f"{plural(memory.alloc_retries, 'allocator retry')}" if memory.alloc_retries else ""
    return " · ".join(part for part in [head, *held, retries.replace("retrys", "retries"), host] if part)


def account_rows(analysis: Analysis) -> list[tuple[str, float, float]]:
    """(line, seconds, share of the wall clock), largest first; tiny lines together as one."""
    account = analysis.account
    wall_s = account.wall_s or 1.0
    rows = [(name, seconds, seconds / wall_s) for name, seconds in account.lines.items()]
    shown = [row for row in rows if row[2] >= SMALL_SHARE or row[0] == "unattributed"]
    # the time that nothing explains is always shown, and effprof's own time whenever there is any
    shown += [row for row in rows if row[0] == "effprof" and row not in shown and row[1] > 0]
    small = sum(row[1] for row in rows if row not in shown)
    shown.sort(key=lambda row: (row[0] == "unattributed", -row[1]))
    if small > 0:
        shown.append((ALL_OTHERS, small, small / wall_s))
    return shown


def line_label(name: str) -> str:
    """A line of the account as people say it: "step.input_wait" → "input wait"."""
    return name.removeprefix("step.").replace("_", " ")


def other_warnings(analysis: Analysis) -> list[Warning]:
    """Warnings that the report has not already told beside the number they explain."""
    told = mfu_reason(analysis) if analysis.efficiency.mfu.value is None else ""
    return [warning for warning in analysis.warnings if clean(warning.message) != told]


def mfu_label(analysis: Analysis) -> str:
    """What the share is called: a share of a measured ceiling is no MFU of a datasheet."""
    return "of ceiling" if is_ceiling(analysis.efficiency.mfu) else "MFU"


def experts_text(analysis: Analysis) -> str:
    """How evenly the experts are loaded."""
    moe = analysis.moe
    if moe is None:
        return ""
    even = NOT_MEASURED if moe.imbalance is None else f"{moe.imbalance:.2f}"
    text = f"{plural(len(moe.layers), 'routed layer')} · busiest expert {even} × the mean"
    if moe.speed_bound is not None and moe.expert_parallel_size != 1:
        slowest = "expert-parallel rank" if moe.layers[0].speed_bound_basis == "expert_parallel_rank" else "expert"
        text += f" · per micro-batch the slowest {slowest} takes {moe.speed_bound:.2f} × the mean"
    dropped = [layer.dropped_share for layer in moe.layers if layer.dropped_share is not None]
    if dropped:
        text += f" · up to {percent(max(dropped))} dropped"
    return f"{text} · {plural(moe.samples, 'micro-batch').replace('batchs', 'batches')} sampled"


def expert_rows(analysis: Analysis, limit: int) -> list[list[str]]:
    """Layer, experts, busiest and least over mean, per micro-batch, dropped; the least even layers first."""
    layers = analysis.moe.layers if analysis.moe else []
    ordered = sorted(layers, key=lambda layer: -(layer.imbalance or 0.0))[:limit]
    return [
        [
            clean(layer.name, 48),
            str(len(layer.tokens_per_expert)),
            _ratio(layer.imbalance),
            _ratio(_least(layer.tokens_per_expert)),
            _ratio(layer.batch_imbalance),
            "–" if layer.dropped_share is None else percent(layer.dropped_share),
        ]
        for layer in ordered
    ]


def rank_rows(analysis: Analysis, limit: int) -> list[list[str]]:
    """Rank, host, device, steps, step time, tokens/s and the shares of three lines; the slowest ranks first."""
    ordered = sorted(analysis.ranks, key=lambda rank: (-(rank.step_time_s.median or 0.0), rank.rank))[:limit]
    return [
        [
            str(rank.rank),
            clean(rank.host, 20),
            clean(rank.device, 26),
            f"{rank.steps:,}",
            duration(rank.step_time_s.median) if rank.step_time_s.median is not None else "–",
            "–" if rank.tokens_per_s is None else significant(rank.tokens_per_s),
            *(
                percent(rank.account.lines.get(f"step.{name}", 0.0) / (rank.account.wall_s or 1.0))
                for name in ("input_wait", "forward", "backward")
            ),
        ]
        for rank in ordered
    ]


def spread_texts(analysis: Analysis) -> list[str]:
    """How far the ranks lie apart, in what they differ by more than 2 %."""
    spread = analysis.rank_spread
    if spread is None:
        return []
    texts = []
    for name, found in (
        ("step time", spread.step_time_s),
        ("input wait", spread.input_wait_s),
        ("forward", spread.forward_s),
        ("backward", spread.backward_s),
    ):
        # ranks that differ by less than 2 % are told apart by chance
        if found is not None and found.highest > 1.02 * found.lowest:
            texts.append(
                f"{name}: {duration(found.lowest)} (rank {found.lowest_rank}) to "
                f"{duration(found.highest)} (rank {found.highest_rank}), median {duration(found.median)}"
            )
    return texts


def telemetry_rows(analysis: Analysis) -> list[list[str]]:
    """Device, reading with unit, mean or increase, lowest, highest; readings without a value give the reason."""
    rows = []
    for figures in analysis.hardware.telemetry:
        reading = clean(figures.reading, 40) + (
            f" [{clean(figures.unit, 12)}]" if figures.unit not in ("", "bytes") else ""
        )
        if "util" in figures.reading:
            reading += " (residency)"
        device = (
            clean(figures.device, 30)
            if len(analysis.hardware.hosts) < 2
            else f"node {figures.node}: {clean(figures.device, 24)}"
        )
        if figures.samples == 0:
            rows.append([device, reading, f"none: {clean(figures.reason or 'unknown')}".replace("_", " "), "", ""])
        elif figures.kind == "counter":
            rows.append([device, reading, f"+{_amount(figures.increase or 0.0, figures.unit)}", "", ""])
        else:
            values = (figures.mean, figures.lowest, figures.highest)
            rows.append(
                [device, reading, *("–" if value is None else _amount(value, figures.unit) for value in values)]
            )
    return rows


def _amount(value: float, unit: str) -> str:
    return gibibytes(value) if unit == "bytes" else significant(value)


def _least(tokens: list[int]) -> float | None:
    total = sum(tokens)
    return min(tokens) * len(tokens) / total if total > 0 else None


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
