"""Rules on money and energy: what the run pays for and does not use. No prices: only what chips can do."""

from __future__ import annotations

from effprof.advise.facts import memory_bytes, needs_accelerator, peak_memory_share, wall_share
from effprof.advise.gains import gain_from_removed_share, no_gain
from effprof.advise.rule import Match, Missing, Threshold, rule
from effprof.analysis.model import Analysis, Evidence
from effprof.errors import EffprofError
from effprof.hardware.catalog import Accelerator, load, lookup

MFU = Threshold(
    "efficiency.mfu", 0.15, "share of the peak", "a chip used for less is bound by something else than its peak", "<"
)
REACHABLE = Threshold(
    "model FLOP/s ÷ peak of the smaller chip",
    0.35,
    "share",
    "well-tuned trainings reach 35 to 50 % of a dense peak",
    relation="<=",
)
MEMORY = Threshold(
    "memory.peak ÷ memory of the smaller chip", 0.85, "share", "leaves room for a longer batch", relation="<="
)
DRAWN = Threshold(
    "hardware.telemetry.power_w ÷ power_limit_w", 0.7, "share of the limit", "below it a cap changes little"
)
NOT_COMPUTING = Threshold(
    "account: input wait, copies, communication, host gap ÷ step time",
    0.30,
    "share of step time",
    "what waits for something else than the device's clock is not slowed by a lower one",
)
NOTHING_RAN = Threshold(
    "account.unattributed ÷ wall clock", 0.20, "share of wall clock", "tails of hooks and exits are below 5 %"
)
HELD = Threshold("account.unattributed", 900, "s", "fifteen minutes: clusters call a reserved device idle after that")


@rule(
    "cost-smaller-chip",
    area="cost",
    title="a smaller chip could do this work",
    symptom="the run fits a chip with a fraction of the peak and asks little of this one",
    thresholds=[MFU, REACHABLE, MEMORY],
    lever="measure the run on the smaller chip and compare cost per token with your prices",
    frameworks={"lightning": "Trainer(accelerator=..., devices=...) on the other machine; effprof compare A B"},
    gain_basis="none for the rate: the smaller chip could reach it at the efficiency of a well-tuned training; its "
    "bandwidth is at least half of this one's",
    risk="what keeps this chip waiting (input, launches) follows the run to the other chip",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2104.04473"],
    system="qianfan",
)
def smaller_chip_fits(run: Analysis) -> Match | None:
    """The chip of this vendor with the lowest peak that holds the run and could do its FLOP/s."""
    needs_accelerator(run)
    figures = run.efficiency
    rate, dtype = figures.model_flops_per_s_per_device.median, figures.mfu.dtype
    if figures.mfu.value is None or rate is None or dtype is None:
        raise Missing(
            "the MFU",
            "a model whose FLOPs can be counted and a known device (of another tool's log: --model, --device)",
        )
    if not MFU.is_crossed(figures.mfu.value):
        return None
    used = peak_memory_share(run) * memory_bytes(run)
    own = _own_row(run)
    for row in sorted(load(), key=lambda each: each.peak_tflops.get(dtype, 0.0)):
        peak = row.peak_tflops.get(dtype, 0.0) * 1e12 / row.runtime_devices_per_chip
        if not _is_alternative(row, own, dtype) or peak <= 0 or not row.memory_bytes:
            continue
        work, full = rate / peak, used / (row.memory_bytes / row.runtime_devices_per_chip)
        if REACHABLE.is_crossed(work) and MEMORY.is_crossed(full):
            return Match(
                title=f"a smaller chip could do this work: {row.name}",
                evidence=[
                    MFU.saw(figures.mfu.value),
                    REACHABLE.saw(work),
                    MEMORY.saw(full),
                    Evidence(metric="its board power", value=row.tdp_w, unit="W"),
                ],
                gain=no_gain(),
                knobs={"environment": f"# same command on {row.vendor} {row.name}, then: effprof compare THIS OTHER"},
            )
    return None


def _own_row(run: Analysis) -> Accelerator:
    group = run.hardware.devices[0]
    try:
        return lookup(group.name, memory_bytes=group.memory_bytes)
    except EffprofError:
        raise Missing(f"what {group.name} can do", "a device that the catalogue knows: effprof device") from None


def _is_alternative(row: Accelerator, own: Accelerator, dtype: str) -> bool:
    """A data-centre chip of the same vendor with at most half the peak and power and at least half the bandwidth."""
    peak, power, bandwidth = own.peak_tflops.get(dtype), own.tdp_w, own.memory_bandwidth_bytes_per_s
    if not peak or not power or not bandwidth or not row.tdp_w or not row.memory_bandwidth_bytes_per_s:
        return False
    is_for_servers = not any(word in row.name for word in ("GeForce", "TITAN", "Laptop", "Jetson"))
    return (
        row.vendor == own.vendor
        and row.basis == "datasheet"
        and is_for_servers
        and row.peak_tflops.get(dtype, 0.0) <= 0.5 * peak
        and row.tdp_w <= power
        and row.memory_bandwidth_bytes_per_s >= 0.5 * bandwidth
    )


@rule(
    "cost-power-cap",
    area="cost",
    title="the device draws power while the step waits for other things",
    symptom="high board power in a run that spends much of its steps on input, copies, communication or the host",
    thresholds=[DRAWN, NOT_COMPUTING],
    lever="a lower power limit: find the one at which the rate starts to fall",
    frameworks={"environment": "nvidia-smi -i N -pl WATTS"},
    gain_basis="none for the rate, which falls by a few per cent at most; published savings are up to 30 % of the "
    "energy without a slowdown in pipelines that wait",
    risk="the computing part becomes slower: measure tokens per joule at two or three limits; needs privileges",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2312.06902", "https://arxiv.org/abs/2208.06102"],
    system="general",
)
def power_is_drawn_while_waiting(run: Analysis) -> Match | None:
    """Mean power near the limit, and a step of which a third waits."""
    needs_accelerator(run)
    power = {each.reading: each.mean for each in run.hardware.telemetry if each.mean}
    drawn, limit = power.get("power_w"), power.get("power_limit_w")
    if not drawn or not limit:
        raise Missing("the device's power and its limit", "EfficiencyCallback(telemetry=True) on a device with a probe")
    waits = ("step.input_wait", "step.host_to_device", "step.exposed_communication", "step.host_gap")
    lines = run.account.lines
    seconds = sum(value for name, value in lines.items() if name.startswith("step."))
    if "step.host_gap" not in lines or seconds <= 0:
        raise Missing("what the device waits for", "EfficiencyCallback(kernel_window=True)")
    waiting = sum(lines.get(name, 0.0) for name in waits) / seconds
    if not DRAWN.is_crossed(drawn / limit) or not NOT_COMPUTING.is_crossed(waiting):
        return None
    return Match(
        evidence=[DRAWN.saw(drawn / limit), NOT_COMPUTING.saw(waiting)],
        gain=no_gain(),
        knobs={"environment": f"nvidia-smi -pl {round(0.8 * limit)}  # then: effprof compare BEFORE AFTER"},
    )


@rule(
    "cost-idle-device",
    area="cost",
    title="devices were held while nothing of the training ran",
    symptom="a long part of the wall clock belongs to no phase of the training",
    thresholds=[NOTHING_RAN, HELD],
    lever="release the devices when the work is done: exit after fit, queue the next job",
    frameworks={
        "lightning": "Trainer(max_time=...), sys.exit() after trainer.fit",
        "environment": "a batch job instead of an interactive session",
    },
    gain_basis="bound: the unattributed part of the wall clock; some of it is work of the script itself: 50 to 100 %",
    risk="work that the script does beside training (data preparation) needs its own place",
    risk_level="low",
    sources=["https://github.com/mila-iqia/mila-docs/issues/414"],
    system="jd-vgpu",
)
def device_is_held(run: Analysis) -> Match | None:
    """Unattributed time of a quarter of an hour or more, on accelerators."""
    needs_accelerator(run)
    share = wall_share(run, "unattributed")
    seconds = run.account.lines["unattributed"]
    if not NOTHING_RAN.is_crossed(share) or not HELD.is_crossed(seconds):
        return None
    return Match(
        evidence=[NOTHING_RAN.saw(share), HELD.saw(seconds)],
        gain=gain_from_removed_share(share, (0.5, 0.8, 1.0), basis="wall"),
        knobs={"lightning": "trainer.fit(model); sys.exit()", "environment": "sbatch train.sh  # not salloc"},
    )
