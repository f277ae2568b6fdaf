"""Rules on devices that a run does not fill: several runs on one, or a slice of it."""

from __future__ import annotations

from effprof.advise.facts import memory_bytes, needs_accelerator, peak_memory_share
from effprof.advise.gains import no_gain
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence

BUSY = Threshold(
    "kernel_account: 1 − idle ÷ window, else hardware.telemetry.utilization_percent",
    0.4,
    "share of time",
    "two runs of less than 40 % leave room for each other's peaks",
    relation="<",
)
SMALL = Threshold(
    "memory.peak ÷ device memory", 0.4, "share", "two runs have to fit, with a margin for contexts", relation="<"
)
SLICE_FULL = Threshold(
    "memory.peak ÷ memory of the slice", 0.9, "share", "above it a longer batch runs out of memory", relation="<="
)
SLICE_WORK = Threshold(
    "model FLOP/s ÷ peak of the slice",
    0.4,
    "share",
    "well-tuned trainings reach 40 % of a peak: a run that asks less of the slice has room on it",
    relation="<=",
)
# NVIDIA's MIG user guide: chip, its memory in GB → profile, share of the compute units, memory in GB.
MIG_PROFILES = {
    ("A100", 40): (("1g.5gb", 1 / 7, 5), ("2g.10gb", 2 / 7, 10), ("3g.20gb", 3 / 7, 20)),
    ("A100", 80): (("1g.10gb", 1 / 7, 10), ("2g.20gb", 2 / 7, 20), ("3g.40gb", 3 / 7, 40)),
    ("A30", 24): (("1g.6gb", 1 / 4, 6), ("2g.12gb", 2 / 4, 12)),
    ("H100", 80): (("1g.10gb", 1 / 7, 10), ("2g.20gb", 2 / 7, 20), ("3g.40gb", 3 / 7, 40)),
    ("H200", 141): (("1g.18gb", 1 / 7, 18), ("2g.35gb", 2 / 7, 35), ("3g.71gb", 3 / 7, 71)),
}


def _alone_on_accelerator(run: Analysis) -> None:
    needs_accelerator(run)
    if run.run.world_size > 1:
        raise NotApplicable


@rule(
    "share-device",
    area="sharing",
    title="the device is mostly idle and mostly empty",
    symptom="a model too small for the device, after everything that keeps it waiting",
    thresholds=[BUSY, SMALL],
    lever="run several trainings on it at once (MPS, or several processes)",
    frameworks={"environment": "nvidia-cuda-mps-control -d, then start the runs"},
    gain_basis="none for this run, each gets slower: the device's total rises until its idle time is filled "
    "(published: up to 4 runs' worth on an A100)",
    risk="runs share memory and faults; each becomes slower and less even",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2209.06018", "https://docs.nvidia.com/deploy/mps/index.html"],
    system="jd-vgpu",
)
def device_is_half_used(run: Analysis) -> Match | None:
    """One rank that leaves time and memory."""
    _alone_on_accelerator(run)
    filled = peak_memory_share(run)
    if not SMALL.is_crossed(filled):
        return None
    busy = _busy(run)
    if not BUSY.is_crossed(busy):
        return None
    together = max(2, min(int(0.9 / max(filled, 0.01)), int(0.9 / max(busy, 0.01)), 7))
    return Match(
        title=f"the device is {busy:.0%} busy and {filled:.0%} full: {together} such runs fit on it",
        evidence=[
            BUSY.saw(busy),
            SMALL.saw(filled),
            Evidence(metric="runs that fit", value=together, unit="runs"),
        ],
        gain=no_gain(),
        knobs={"environment": f"nvidia-cuda-mps-control -d  # then start {together} runs on this device"},
    )


def _busy(run: Analysis) -> float:
    accounts = [account for account in run.kernel_account.values() if account.window_s > 0]
    if accounts:
        return sum(1 - account.idle_s / account.window_s for account in accounts) / len(accounts)
    found = [
        each.mean for each in run.hardware.telemetry if each.reading == "utilization_percent" and each.mean is not None
    ]
    if not found:
        raise Missing("how busy the device is", "EfficiencyCallback(kernel_window=True), or telemetry of the device")
    return sum(found) / len(found) / 100


@rule(
    "share-slice",
    area="sharing",
    title="a slice of the device would do",
    symptom="memory and FLOP/s of the run fit into a MIG slice",
    thresholds=[SLICE_FULL, SLICE_WORK],
    lever="train on a MIG slice and leave the rest to others",
    frameworks={"environment": "nvidia-smi mig -cgi PROFILE -C"},
    gain_basis="none for this run: the rest of the device is free for others",
    risk="a slice has its share of the memory bandwidth too; changing MIG mode needs an idle device and privileges",
    risk_level="medium",
    sources=["https://docs.nvidia.com/datacenter/tesla/mig-user-guide/"],
    system="jd-vgpu",
)
def slice_would_do(run: Analysis) -> Match | None:
    """The smallest profile that holds the run, with its rate within reach."""
    _alone_on_accelerator(run)
    name = run.hardware.devices[0].name
    if "MIG" in name:
        raise NotApplicable  # it is a slice
    profiles = _profiles(name, memory_bytes(run))
    used = peak_memory_share(run) * memory_bytes(run)
    rate, peak = run.efficiency.model_flops_per_s_per_device.median, run.efficiency.mfu.peak_flops_per_s
    if rate is None or peak is None:
        raise Missing(
            "model FLOP/s and the device's peak", "EfficiencyCallback with a model whose FLOPs can be counted"
        )
    for profile, share, gigabytes in profiles:
        full, work = used / (gigabytes * 1e9), rate / (peak * share)
        if SLICE_FULL.is_crossed(full) and SLICE_WORK.is_crossed(work):
            return Match(
                title=f"a slice {profile} of the device would do",
                evidence=[SLICE_FULL.saw(full), SLICE_WORK.saw(work)],
                gain=no_gain(),
                knobs={"environment": f"nvidia-smi mig -cgi {profile} -C"},
            )
    return None


def _profiles(name: str, size: int) -> tuple[tuple[str, float, int], ...]:
    for (chip, gigabytes), profiles in MIG_PROFILES.items():
        if chip in name.upper() and abs(size / (gigabytes * 1e9) - 1) < 0.1:
            return profiles
    raise NotApplicable
