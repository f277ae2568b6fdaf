"""What rules ask of an analysis: each accessor gives a plain number, or says what was not recorded and how to."""

from __future__ import annotations

from typing import Any

from effprof.advise.rule import Missing, NotApplicable
from effprof.analysis.model import Analysis
from effprof.trace.summary import RankKernels

KERNEL_WINDOW = "EfficiencyCallback(kernel_window=True)"
CALLBACK = "train with EfficiencyCallback of this version"
# A setting is also missing where the loop or the model has none: a module without a config names no hidden size.
SETTING = "docs/facts.md says where it is read from; train with EfficiencyCallback of this version"


def config(run: Analysis, key: str) -> Any:
    """A setting of the run; raises `Missing` where it was not recorded."""
    if key not in run.run.config:
        raise Missing(f"the setting `{key}`", SETTING)
    return run.run.config[key]


def step_seconds(run: Analysis) -> float:
    """Seconds of the wall clock inside optimizer steps, mean over ranks."""
    seconds = sum(value for name, value in run.account.lines.items() if name.startswith("step."))
    if seconds <= 0:
        raise Missing("the time account of at least one step", CALLBACK)
    return seconds


def step_share(run: Analysis, line: str) -> float:
    """Share of the time inside steps that a line `step.*` of the account took, 0 … 1."""
    if line not in run.account.lines:
        raise Missing(f"the account's line {line}", KERNEL_WINDOW)
    return run.account.lines[line] / step_seconds(run)


def wall_share(run: Analysis, line: str) -> float:
    """Share of the wall clock that a line of the account took, 0 … 1."""
    if line not in run.account.lines:
        raise Missing(f"the account's line {line}", CALLBACK)
    return run.account.lines[line] / run.account.wall_s if run.account.wall_s > 0 else 0.0


def device_type(run: Analysis) -> str:
    """torch's name of the device's type: "cuda", "cpu", "xpu", …"""
    if not run.hardware.devices:
        raise Missing("the device", CALLBACK)
    return run.hardware.devices[0].type


def needs_accelerator(run: Analysis) -> None:
    """Ends a rule that has nothing to say about a CPU."""
    if device_type(run) == "cpu":
        raise NotApplicable


def needs_ranks(run: Analysis, at_least: int = 2) -> None:
    """Ends a rule that has nothing to say about fewer devices."""
    if run.run.world_size < at_least:
        raise NotApplicable


def kernels(run: Analysis) -> list[RankKernels]:
    """The kernel accounts of the ranks that have one; raises `Missing` without any."""
    accounts = list(run.kernel_account.values())
    if not accounts:
        raise Missing("a kernel window", KERNEL_WINDOW)
    return accounts


def kernel_share(run: Analysis, *families: str) -> float:
    """Device time with a kernel of the families ÷ window, mean over ranks, 0 … 1. A family names its kinds too."""
    accounts = kernels(run)
    shares = [
        sum(
            family.share or 0.0
            for name, family in account.kernels.items()
            if name in families or name.partition(".")[0] in families
        )
        for account in accounts
    ]
    return min(1.0, sum(shares) / len(shares))


def memory_bytes(run: Analysis) -> int:
    """Memory of one device; raises `Missing` where it is not known."""
    for group in run.hardware.devices:
        if group.memory_bytes:
            return group.memory_bytes
    raise Missing("the device's memory", CALLBACK)


def peak_memory_share(run: Analysis) -> float:
    """Peak of the allocator's reserved memory (allocated, where that is all there is) ÷ device memory, fullest rank."""
    peaks = [rank.peak_reserved_bytes or rank.peak_allocated_bytes or 0 for rank in run.memory.ranks]
    if not any(peaks):
        raise Missing("the allocator's peak", "run on a device with a caching allocator, with EfficiencyCallback")
    return max(peaks) / memory_bytes(run)


def memory_part(run: Analysis, name: str) -> float:
    """A part of the allocator's peak, such as `activations_bytes`, ÷ the peak, 0 … 1."""
    value, peak = getattr(run.memory, name), run.memory.peak_allocated_bytes
    if value is None or not peak:
        raise Missing(f"memory.{name}", "train past the first step on a device with a caching allocator")
    return float(value / peak)


def micro_batches_per_step(run: Analysis) -> int:
    """Micro-batches that one optimizer step accumulates."""
    return int(config(run, "accumulate"))


def parallel_size(run: Analysis, axis: str) -> int:
    """Size of a parallel axis ("tensor", "pipeline", "context", "expert"); 1 where the run did not say."""
    return int(run.run.parallel.get(axis) or run.run.config.get(axis) or 1)


def thread_busy(run: Analysis) -> float:
    """Share of the steady steps' time that the training thread spent on a processor, mean over ranks, 0 … 1."""
    shares = [rank.training_thread_busy for rank in run.ranks if rank.training_thread_busy is not None]
    if not shares:
        raise Missing("the training thread's processor time", f"{CALLBACK}, on Linux, for at least five seconds")
    return sum(shares) / len(shares)


def nodes(run: Analysis) -> int:
    """Hosts of the job."""
    return max(1, len(run.hardware.hosts))


def telemetry_mean(run: Analysis, reading: str) -> float:
    """Mean of a reading over devices; raises `Missing` where no probe gave it."""
    values = [each.mean for each in run.hardware.telemetry if each.reading == reading and each.mean is not None]
    if not values:
        raise Missing(
            f"the telemetry reading `{reading}`", "EfficiencyCallback(telemetry=True) on a device with a probe"
        )
    return sum(values) / len(values)
