"""Hand-made jobs of several ranks with kernel windows, for the rules on layouts, experts and communication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from effprof.analysis.analyze import analyze
from effprof.analysis.model import Analysis
from effprof.runlog.reader import open_run
from effprof.runlog.schema import Kernels, Probe, Telemetry
from effprof.trace.summary import Family, Idle, RankKernels, Step

GIB = 1 << 30
NOW_S = 1_760_100_000.0
CONFIG = {"accumulate": 1, "micro_batch": 4, "layers": 32, "precision": "bf16-mixed", "max_steps": 1000}
MODEL = {
    "name": "Llama",
    "parameters_total": 8_000_000_000,
    "parameters_bytes": 2 * GIB,
    "gradients_bytes": 2 * GIB,
    "optimizer_bytes": 12 * GIB,
}
DDP = {
    "kind": "ddp",
    "find_unused_parameters": False,
    "comm_hook": "none",
    "bucket_cap_mb": 25.0,
}
FSDP = {"kind": "fsdp", "sharding": "FULL_SHARD", "reshard_after_forward": True, "backward_prefetch": "BACKWARD_PRE"}
FSDP2 = {"kind": "fsdp2", "sharding": "FULL_SHARD", "reshard_after_forward": True, "parameter_dtype": "bf16"}
DEEPSPEED = {"kind": "deepspeed", "zero_stage": 3, "overlap_comm": True}


def window(
    exposed: dict[str, float] | None = None,
    *,
    hidden: dict[str, float] | None = None,
    bubble: float | None = None,
    compute: float = 0.8,
    families: dict[str, float] | None = None,
    bytes_of: dict[str, float] | None = None,
    counts: dict[str, int] | None = None,
    devices: int = 1,
    idle: float | None = None,
) -> RankKernels:
    """A window of one second and two steps. `exposed` and `hidden` map a collective to its share of the window."""
    exposed, hidden, sizes = exposed or {}, hidden or {}, bytes_of or {}
    kernels = {
        f"communication.{kind}": Family(
            count=(counts or {}).get(kind, 20),
            total_s=exposed.get(kind, 0.0) + hidden.get(kind, 0.0),
            union_s=exposed.get(kind, 0.0) + hidden.get(kind, 0.0),
            share=exposed.get(kind, 0.0) + hidden.get(kind, 0.0),
            exposed_s=exposed.get(kind, 0.0),
            message_bytes=sizes.get(kind),
        )
        for kind in {**exposed, **hidden}
    }
    kernels |= {
        name: Family(count=10, total_s=share, union_s=share, share=share) for name, share in (families or {}).items()
    }
    outside = sum(exposed.values()) + (bubble or 0.0)
    split: dict[str, Any] = {
        "window_s": 1.0,
        "compute_s": compute,
        "communication_s": outside + sum(hidden.values()),
        "communication_exposed_s": outside,
        "memory_copy_s": 0.0,
        "memory_copy_exposed_s": 0.0,
        "idle_s": max(0.0, 1 - compute - outside) if idle is None else idle,
        "idle": Idle(),
    }
    steps = [Step(step=number, host_s=0.5, pipeline_bubble_s=None, **split) for number in (1, 2)]
    return RankKernels(kernels=kernels, steps=steps, devices=devices, pipeline_bubble_s=bubble, **split)


def job(
    hand_made: Any,
    path: Path,
    kernels: RankKernels | list[RankKernels] | None = None,
    *,
    ranks: int = 8,
    nodes: int = 1,
    parallel: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    peak_gib: float = 64.0,
    experts: dict[str, list[int]] | None = None,
    dropped: list[int | None] | None = None,
    steps: list[list[dict[str, Any]]] | None = None,
    telemetry: list[dict[str, float]] | None = None,
    devices: list[dict[str, Any]] | None = None,
    tail: list[tuple[str, float]] | None = None,
) -> Analysis:
    """The analysis of a job's log: equal ranks on H100s unless told otherwise, 30 steps of 82 ms at half the peak."""
    run = hand_made(path).record(
        config={**CONFIG, **(config or {})},
        model={**MODEL, **(model or {})},
        parallel={"devices_per_node": ranks // nodes, "nodes": nodes, **(DDP if parallel is None else parallel)},
    )
    for rank in range(ranks):
        memory = run.memory(
            peak_allocated_bytes=int(peak_gib * GIB),
            peak_reserved_bytes=int(peak_gib * GIB),
            device_total_bytes=85_520_809_984,
        )
        lines: list[msgspec.Struct] = [memory]
        if experts:
            lines.append(run.experts(experts, dropped))
        own = kernels[rank] if isinstance(kernels, list) else kernels
        if own is not None:
            lines.append(_recorded(own))
        extra = {"device": devices[rank]} if devices else {}
        run.rank(
            steps[rank] if steps else [run.step(0.082, positions=40.0) for _ in range(30)],
            rank=rank,
            world_size=ranks,
            host=f"node-{rank * nodes // ranks}",
            lines=lines,
            tail=tail or [],
            **extra,
        )
    if telemetry:
        run.node([Probe(probe="nvidia", readings=_READINGS)], [_sample(n, telemetry) for n in range(len(telemetry))])
    return analyze(open_run(str(path)), now_s=NOW_S)


_COUNTERS = ("throttle_sw_thermal_s", "throttle_hw_thermal_s", "throttle_power_brake_s")
_GAUGES = ("sm_clock_mhz", "sm_clock_max_mhz", "power_w", "power_limit_w", "utilization_percent")
_READINGS = {name: {"unit": "", "scope": "board", "kind": "counter"} for name in _COUNTERS} | {
    name: {"unit": "", "scope": "board", "kind": "gauge"} for name in _GAUGES
}


def _sample(number: int, telemetry: list[dict[str, float]]) -> Telemetry:
    return Telemetry(monotonic_ns=5_000_000_000_000 + number * 1_000_000_000, values=dict(telemetry[number]))


def _recorded(account: RankKernels) -> Kernels:
    exposed = account.communication_exposed_s - (account.pipeline_bubble_s or 0.0)
    lines = {
        "step.forward": account.compute_s * 0.33,
        "step.backward": account.compute_s * 0.6,
        "step.optimizer": account.compute_s * 0.07,
        "step.exposed_communication": exposed,
        "step.host_gap": account.idle_s,
    }
    if account.pipeline_bubble_s is not None:
        lines["step.pipeline_bubble"] = account.pipeline_bubble_s
    return Kernels(
        monotonic_ns=5_003_000_000_000,
        first_step=20,
        steps=2,
        trigger="schedule",
        basis="device",
        window_s=1.0,
        lines=lines,
        account=msgspec.to_builtins(account),
    )
