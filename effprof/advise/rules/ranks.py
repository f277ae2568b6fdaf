"""Rules on ranks that hold up the others: slow devices, late batches, throttled clocks, slow links, mixed chips."""

from __future__ import annotations

from effprof.advise.facts import (
    CALLBACK,
    device_type,
    needs_accelerator,
    needs_ranks,
    parallel_size,
    step_share,
)
from effprof.advise.gains import clip_gain, gain_from_faster_part, gain_from_removed_share
from effprof.advise.layout import communication_share, message_rate, needs_devices, node_count
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence, RankSpread, Spread
from effprof.errors import EffprofError
from effprof.hardware.catalog import lookup

TELEMETRY = "EfficiencyCallback(telemetry=True) on a device with a probe"

SLOW_FORWARD = Threshold(
    "rank_spread.forward_s: slowest ÷ median",
    1.10,
    "ratio",
    "ranks with equal work and healthy devices lie within a few per cent of each other, medians over steps closer",
)
OTHERS_WAIT = Threshold(
    "rank_spread.backward_s: (median − the slow rank's) ÷ its lead in the phases before",
    0.5,
    "ratio",
    "ranks that wait for another spend that time in backward, where gradients are reduced: if they don't, they "
    "do not wait for this one",
    relation=">=",
)
LATE_INPUT = Threshold(
    "rank_spread.input_wait_s: (slowest − median) ÷ step time",
    0.05,
    "share of step time",
    "below it the wait is within what a busy host's scheduling takes",
)
CAUSED_WAIT = Threshold(
    "kernel_account.stragglers.caused_wait_s ÷ window_s",
    0.05,
    "share of the kernel window",
    "ranks that run alike still arrive within a few per cent of a step of each other",
)
THROTTLED = Threshold(
    "hardware.telemetry: throttle_sw_thermal_s, throttle_hw_thermal_s, throttle_power_brake_s ÷ wall clock",
    0.05,
    "share of wall clock",
    "healthy machines never set these; a power cap is normal in dense training and does not count",
)
CLOCK_BEHIND = Threshold(
    "hardware.telemetry.sm_clock_mhz: slowest device ÷ median",
    0.93,
    "ratio",
    "devices of one kind under one load differ by 2 to 4 % in clocks",
    relation="<",
)
LINK_USED = Threshold(
    "bus bandwidth of all-reduces ÷ one direction of the link",
    0.3,
    "ratio",
    "nccl-tests reach 0.7 to 0.9 of a direction with large messages; waiting for other ranks is counted in here",
    relation="<",
)
LARGE_MESSAGE = Threshold(
    "kernel_account.communication.all_reduce: mean bytes",
    4 * 2**20,
    "bytes",
    "smaller messages are bound by latency and say nothing about the link",
    relation=">=",
)
REDUCE_EXPOSED = Threshold(
    "kernel_account.communication.all_reduce.exposed_s ÷ window_s",
    0.05,
    "share of the kernel window",
    "a link that is hidden behind computation costs nothing",
)
CHIPS_DIFFER = Threshold(
    "catalogue peak: fastest ÷ slowest device of the job", 1.10, "ratio", "a smaller difference is within clocks"
)


def _spread(run: Analysis) -> RankSpread:
    """The ranks' phases, where the host's clock tells them: on a device the launch of a phase is not its work."""
    needs_ranks(run)
    if parallel_size(run, "pipeline") > 1:
        raise NotApplicable  # stages differ by design
    if device_type(run) != "cpu":
        raise Missing(
            "ranks' device times side by side", "profiler traces of all ranks in one folder: effprof analyze DIR"
        )
    if run.rank_spread is None:
        raise Missing("the logs of at least two ranks", CALLBACK)
    return run.rank_spread


def _lead(spread: Spread, ranks: int) -> float:
    """Seconds of the slowest rank beyond the usual one."""
    return spread.highest - (spread.median if ranks > 2 else spread.lowest)


def _others_wait(backward: Spread, culprit: int, lead: float, ranks: int) -> float:
    """How much of the culprit's lead the others spend in backward; 0 where it is not the one that waits least."""
    if backward.lowest_rank != culprit or lead <= 0:
        return 0.0
    return ((backward.median if ranks > 2 else backward.highest) - backward.lowest) / lead


@rule(
    "com-straggler",
    area="communication",
    title="one rank computes slower and all others wait for it",
    symptom="its forward pass takes longest and its backward pass, where the others wait for gradients, is shortest",
    thresholds=[SLOW_FORWARD, OTHERS_WAIT],
    lever="find what that rank has that others have not: work, neighbours on the machine, clocks, a failing device",
    frameworks={
        "environment": "compare clocks, temperatures and load of the machine; start the job without it",
        "lightning": "StragglerDetectionCallback of nvidia-resiliency-ext",
    },
    gain_basis="bound: forward and backward of that rank at the others' pace. Low: only what was seen in forward; "
    "high: backward slower in proportion",
    risk="ranks with longer samples look slow too: compare tokens per rank first",
    risk_level="low",
    sources=[
        "https://nvidia.github.io/nvidia-resiliency-ext/straggler_det/usage_guide.html",
        "https://arxiv.org/abs/2406.04594",
    ],
    system="tongyi",
)
def one_rank_is_slow(run: Analysis) -> Match | None:
    """The rank with the longest forward pass waits least in backward."""
    spread, ranks = _spread(run), run.run.world_size
    step, forward, backward = spread.step_time_s, spread.forward_s, spread.backward_s
    if step is None or forward is None or backward is None or step.median <= 0:
        raise Missing("steady steps of at least two ranks", "train longer")
    lead = _lead(forward, ranks)
    usual = forward.highest - lead
    slowness = forward.highest / usual if usual > 0 else 1.0
    waits = _others_wait(backward, forward.highest_rank, lead, ranks)
    if not SLOW_FORWARD.is_crossed(slowness) or not OTHERS_WAIT.is_crossed(waits):
        return None
    seen, derived = lead / step.median, backward.lowest * (1 - 1 / slowness) / step.median
    whole = gain_from_removed_share(
        seen + derived, (seen / (seen + derived), (seen + derived / 2) / (seen + derived), 1)
    )
    host = next((rank.host for rank in run.ranks if rank.rank == forward.highest_rank), "")
    return Match(
        title=f"rank {forward.highest_rank} computes slower and all others wait for it",
        evidence=[
            SLOW_FORWARD.saw(slowness),
            OTHERS_WAIT.saw(waits),
            Evidence(metric="rank_spread.forward_s.highest_rank", value=forward.highest_rank, unit="rank"),
        ],
        gain=whole,
        knobs={
            "environment": f"look at rank {forward.highest_rank} on {host or 'its host'}: clocks, temperature, load"
        },
    )


@rule(
    "com-straggler-input",
    area="communication",
    title="one rank gets its batches late and all others wait for it",
    symptom="one rank waits for its loader while the others wait for that rank",
    thresholds=[LATE_INPUT, OTHERS_WAIT],
    lever="give that rank's loader what the others' have: processors, storage, shards of equal size",
    frameworks={
        "lightning": "DataLoader(num_workers=...) sized by the slowest host; equal shards per rank",
        "pytorch": "DataLoader(num_workers=...) sized by the slowest host; equal shards per rank",
    },
    gain_basis="bound: that rank's wait beyond the others'; a loader is repaired entirely or mostly: 60 to 100 %",
    risk="none",
    risk_level="low",
    sources=["https://github.com/pytorch/kineto/pull/1284"],
    system="general",
)
def one_rank_is_fed_late(run: Analysis) -> Match | None:
    """The rank with the longest input wait waits least in backward."""
    spread, ranks = _spread(run), run.run.world_size
    step, waiting, backward = spread.step_time_s, spread.input_wait_s, spread.backward_s
    if step is None or waiting is None or backward is None or step.median <= 0:
        raise Missing("steady steps of at least two ranks", "train longer")
    lead = _lead(waiting, ranks)
    waits = _others_wait(backward, waiting.highest_rank, lead, ranks)
    if not LATE_INPUT.is_crossed(lead / step.median) or not OTHERS_WAIT.is_crossed(waits):
        return None
    snippet = f"DataLoader(num_workers=N, persistent_workers=True)  # on the host of rank {waiting.highest_rank}"
    return Match(
        title=f"rank {waiting.highest_rank} gets its batches late and all others wait for it",
        evidence=[LATE_INPUT.saw(lead / step.median), OTHERS_WAIT.saw(waits)],
        gain=gain_from_removed_share(lead / step.median, (0.6, 0.9, 1.0)),
        knobs={"lightning": snippet, "pytorch": snippet},
    )


@rule(
    "com-late-rank",
    area="communication",
    title="ranks wait in collectives for one that comes last",
    symptom="in traces of several ranks, one arrives last in the collectives and others sit in them",
    thresholds=[CAUSED_WAIT],
    lever="find what the late rank does before its collectives: input, host work, slower kernels",
    frameworks={"environment": "effprof analyze DIR shows the account of that rank beside the others'"},
    gain_basis="bound: the wait that the latest rank caused. Part of it moves to another rank: 40 to 90 %",
    risk="a trace of a few steps may have caught an exception",
    risk_level="low",
    sources=["https://arxiv.org/abs/2406.04594", "https://github.com/facebookresearch/HolisticTraceAnalysis"],
    system="tongyi",
)
def one_rank_comes_last(run: Analysis) -> Match | None:
    """Waiting that one rank caused in matched collectives."""
    needs_ranks(run)
    found = {
        rank: account.stragglers.caused_wait_s / account.window_s
        for rank, account in run.kernel_account.items()
        if account.stragglers is not None and account.stragglers.group_is_complete and account.window_s > 0
    }
    if not found:
        raise Missing(
            "traces of all ranks of a group", "profiler traces of all ranks in one folder: effprof analyze DIR"
        )
    latest = max(found, key=lambda rank: found[rank])
    if not CAUSED_WAIT.is_crossed(found[latest]):
        return None
    return Match(
        title=f"ranks wait in collectives for rank {latest}",
        evidence=[CAUSED_WAIT.saw(found[latest])],
        gain=gain_from_removed_share(found[latest], (0.4, 0.7, 0.9)),
        knobs={"environment": f"compare ranks[{latest}].account with the others' in effprof analyze --json"},
    )


@rule(
    "com-throttle",
    area="communication",
    title="devices slow down because of heat or a power brake",
    symptom="the driver counts time in which it held clocks down to protect the board",
    thresholds=[THROTTLED],
    lever="cooling, seating and power supply of the machine, or another machine",
    frameworks={"environment": "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER"},
    gain_basis="bound: the time throttled, or what the clocks lacked of their highest, whichever is less; other limits "
    "follow when this one is gone: 20 to 90 %",
    risk="none for the training; needs access to the machine",
    risk_level="low",
    sources=["https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html"],
    system="general",
)
def devices_are_throttled(run: Analysis) -> Match | None:
    """Counters that healthy hardware leaves at zero."""
    needs_accelerator(run)
    names = ("throttle_sw_thermal_s", "throttle_hw_thermal_s", "throttle_power_brake_s")
    by_device: dict[tuple[int, str], float] = {}
    for each in run.hardware.telemetry:
        if each.reading in names and each.increase is not None:
            by_device[each.node, each.device] = by_device.get((each.node, each.device), 0.0) + each.increase
    if not by_device:
        raise Missing("the drivers' throttle counters", TELEMETRY)
    worst = max(by_device, key=lambda device: by_device[device])
    share = min(1.0, by_device[worst] / run.account.wall_s) if run.account.wall_s > 0 else 0.0
    if not THROTTLED.is_crossed(share):
        return None
    lacking = _lacking_clock(run, *worst)
    return Match(
        evidence=[THROTTLED.saw(share), Evidence(metric="1 − clock ÷ highest clock", value=lacking, unit="share")],
        gain=gain_from_removed_share(share if lacking is None else min(share, lacking), (0.2, 0.5, 0.9)),
        knobs={"environment": f"nvidia-smi -q -i {worst[1]} -d PERFORMANCE,TEMPERATURE,POWER  # on node {worst[0]}"},
    )


def _lacking_clock(run: Analysis, node: int, device: str) -> float | None:
    readings = {each.reading: each for each in run.hardware.telemetry if (each.node, each.device) == (node, device)}
    clock, highest = readings.get("sm_clock_mhz"), readings.get("sm_clock_max_mhz")
    if clock is None or highest is None or not clock.mean or not highest.highest:
        return None
    return max(0.0, 1 - clock.mean / highest.highest)


@rule(
    "com-slow-clock",
    area="communication",
    title="one device runs at a lower clock than the others",
    symptom="a device of the job stays behind its peers in clock while all share the same steps",
    thresholds=[CLOCK_BEHIND],
    lever="find out why: application clocks, power limit, temperature; else leave the device out",
    frameworks={"environment": "nvidia-smi --query-gpu=clocks.sm,power.limit,temperature.gpu --format=csv"},
    gain_basis="bound: forward and backward at the others' clock; kernels bound by memory do not follow the clock: "
    "30 to 100 %",
    risk="none for the training; needs access to the machine",
    risk_level="low",
    sources=["https://arxiv.org/abs/2406.04594"],
    system="general",
)
def one_clock_is_behind(run: Analysis) -> Match | None:
    """Mean clocks of the devices of one kind."""
    needs_devices(run)
    if len(run.hardware.devices) > 1:
        raise NotApplicable
    clocks = {
        (each.node, each.device): each.mean
        for each in run.hardware.telemetry
        if each.reading == "sm_clock_mhz" and each.mean
    }
    if len(clocks) < 2:
        raise Missing("the clocks of at least two devices", TELEMETRY)
    usual = sorted(clocks.values())[len(clocks) // 2]
    slowest = min(clocks, key=lambda device: clocks[device])
    ratio = clocks[slowest] / usual
    if not CLOCK_BEHIND.is_crossed(ratio):
        return None
    computing = step_share(run, "step.forward") + step_share(run, "step.backward")
    return Match(
        title=f"device {slowest[1]} of node {slowest[0]} runs at a lower clock than the others",
        evidence=[CLOCK_BEHIND.saw(ratio), Evidence(metric="its mean clock", value=clocks[slowest], unit="MHz")],
        gain=gain_from_removed_share(computing * (1 - ratio), (0.3, 0.7, 1.0)),
        knobs={
            "environment": f"nvidia-smi -i {slowest[1]} --query-gpu=clocks.sm,power.limit,temperature.gpu --format=csv"
        },
    )


@rule(
    "com-topology",
    area="communication",
    title="all-reduces use a fraction of the link between devices",
    symptom="large messages inside one machine move far below what its links carry",
    thresholds=[LINK_USED, LARGE_MESSAGE, REDUCE_EXPOSED],
    lever="let NCCL find the fast path: peer access, topology, process binding",
    frameworks={"environment": "NCCL_DEBUG=INFO; nvidia-smi topo -m; unset NCCL_P2P_DISABLE and NCCL_SHM_DISABLE"},
    gain_basis="bound: the exposed all-reduces at the link's full rate. Part of the time is waiting for other ranks, "
    "which a faster path leaves: 1.2 to 3 times faster",
    risk="none; a one-minute nccl-tests run tells first",
    risk_level="low",
    sources=[
        "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html",
        "https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md",
    ],
    system="tongyi",
)
def links_are_idle(run: Analysis) -> Match | None:
    """Bus bandwidth (nccl-tests: 2 (n − 1) / n × bytes / s) against one direction of the catalogue's link."""
    needs_devices(run)
    if node_count(run) > 1:
        raise NotApplicable  # the slowest link is the network's, which no catalogue knows
    exposed = communication_share(run, "all_reduce")
    if not REDUCE_EXPOSED.is_crossed(exposed):
        return None
    link, found = run.hardware.interconnect_bytes_per_s, message_rate(run, "all_reduce")
    if not link:
        raise Missing("the rate of the device's links", "a device that the catalogue knows: effprof device")
    if found is None:
        raise Missing("the all-reduces' message sizes", "a kernel window with NCCL's message sizes")
    ranks = run.run.world_size
    used = found[0] * 2 * (ranks - 1) / ranks / (link / 2)
    if not LARGE_MESSAGE.is_crossed(found[1]) or not LINK_USED.is_crossed(used):
        return None
    return Match(
        evidence=[LINK_USED.saw(used), LARGE_MESSAGE.saw(found[1]), REDUCE_EXPOSED.saw(exposed)],
        gain=gain_from_faster_part(exposed, (1.2, 1.8, 3.0), limit=1 / used),
        knobs={"environment": "NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=GRAPH  # then: nvidia-smi topo -m"},
    )


@rule(
    "com-mixed-chips",
    area="communication",
    title="equal batches on unequal chips",
    symptom="devices of several kinds in one job: the faster ones wait for the slowest",
    thresholds=[CHIPS_DIFFER],
    lever="split the batch (or the stages) by measured speed",
    frameworks={
        "pytorch": "a sampler whose share per rank follows the device's measured tokens per second",
        "megatron": "--decoder-first-pipeline-num-layers, --decoder-last-pipeline-num-layers by stage",
    },
    gain_basis="bound: every chip at its catalogue peak instead of the slowest's. Peaks overstate differences where "
    "memory or the host limits: 30 to 85 %",
    risk="gradients must be weighted by samples; numerics differ between chips",
    risk_level="high",
    sources=["https://arxiv.org/abs/2404.14624"],
    system="baige",
)
def chips_are_mixed(run: Analysis) -> Match | None:
    """Devices of several kinds, by their dense peaks."""
    needs_ranks(run)
    groups = run.hardware.devices
    if len(groups) < 2:
        raise NotApplicable
    speeds = []
    for group in groups:
        try:
            peaks = lookup(group.name, memory_bytes=group.memory_bytes).peak_tflops
        except EffprofError:
            raise Missing(f"the peak of {group.name}", "a device that the catalogue knows: effprof device") from None
        speeds.append((group.count, peaks.get("bf16") or peaks.get("fp16") or peaks.get("fp32") or 0.0))
    slowest, fastest = min(speed for _, speed in speeds), max(speed for _, speed in speeds)
    if slowest <= 0 or not CHIPS_DIFFER.is_crossed(fastest / slowest):
        return None
    bound = sum(count * speed for count, speed in speeds) / (sum(count for count, _ in speeds) * slowest) - 1
    return Match(
        evidence=[CHIPS_DIFFER.saw(fastest / slowest)],
        gain=clip_gain(0.3 * bound, 0.6 * bound, 0.85 * bound, bound),
        knobs={
            "pytorch": "# micro-batch per rank in proportion: "
            + ", ".join(
                f"{group.name}: {speed / slowest:.2g}" for group, (_, speed) in zip(groups, speeds, strict=True)
            )
        },
    )
