"""Memory, expert load, ranks, hardware and outcome of hand-made runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from effprof.analysis.analyze import analyze
from effprof.analysis.hardware import describe_hardware
from effprof.analysis.memory import measure_memory
from effprof.analysis.model import Analysis
from effprof.analysis.moe import imbalance, measure_moe, rank_imbalance
from effprof.analysis.outcome import outcome
from effprof.runlog.reader import Run, open_run
from effprof.runlog.schema import Event, Probe, Telemetry
from effprof.trace.summary import RankKernels

GIB = 2**30


def opened(run: Any) -> Run:
    return open_run(str(run.path))


def codes(analysis: Analysis) -> list[str]:
    return [warning.code for warning in analysis.warnings]


def test_memory_is_the_fullest_ranks(tmp_path: Path, hand_made: Any) -> None:
    model = {"parameters_bytes": 4 * GIB, "gradients_bytes": 4 * GIB, "optimizer_bytes": 8 * GIB}
    run = hand_made(tmp_path / "r").record(model=model)
    for rank, size in ((0, 20), (1, 24)):
        lines = [
            run.memory(peak_allocated_bytes=10 * GIB, peak_reserved_bytes=11 * GIB, alloc_retries=0),
            run.memory(
                peak_allocated_bytes=size * GIB,
                peak_reserved_bytes=(size + 2) * GIB,
                device_total_bytes=80 * GIB,
                alloc_retries=3,
                process_rss_bytes=2 * GIB,
            ),
        ]
        run.rank([run.step()] * 10, rank=rank, world_size=2, lines=lines)
    figures, warnings = measure_memory(opened(run))
    assert figures.peak_allocated_bytes == 24 * GIB
    assert figures.peak_reserved_bytes == 26 * GIB
    assert figures.fragmentation_bytes == 2 * GIB
    assert figures.activations_bytes == 8 * GIB
    assert figures.device_total_bytes == 80 * GIB
    assert figures.alloc_retries == 3
    assert [rank.peak_allocated_bytes for rank in figures.ranks] == [20 * GIB, 24 * GIB]
    assert not warnings


def test_a_cpu_has_no_device_memory_and_says_so(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 10, device={"type": "cpu", "name": "Xeon"}, lines=[run.memory(process_rss_bytes=GIB)])
    figures, [warning] = measure_memory(opened(run))
    assert figures.peak_allocated_bytes is None
    assert figures.process_rss_bytes == GIB
    assert "no caching allocator" in warning.message


def test_expert_load_is_summed_over_data_parallel_ranks_once(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    for rank in range(4):
        sample = run.experts({"layers.1": [30, 10, 0, 0], "layers.2": [5, 5, 5, 5]}, [4, None])
        run.rank(
            [run.step()] * 10,
            rank=rank,
            world_size=4,
            data_parallel_rank=rank // 2,
            data_parallel_size=2,
            lines=[sample],
        )
    moe, warnings = measure_moe(opened(run))
    assert moe is not None
    assert [layer.tokens_per_expert for layer in moe.layers] == [[60, 20, 0, 0], [10, 10, 10, 10]]
    assert [layer.imbalance for layer in moe.layers] == [3.0, 1.0]
    assert moe.imbalance == 2.0
    assert moe.samples == 2
    assert moe.layers[0].dropped_share == pytest.approx(8 / 88)
    assert moe.layers[1].dropped_share is None
    assert moe.layers[0].speed_bound == 3.0
    assert moe.layers[0].speed_bound_basis == "expert"
    assert [warning.code for warning in warnings] == ["expert_parallel_unknown", "expert_capacity_unknown"]


def test_load_that_moves_between_experts_shows_per_batch(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    lines = [run.experts({"layers.1": [40, 0]}), run.experts({"layers.1": [0, 40]})]
    run.rank([run.step()] * 10, lines=lines)
    moe, _ = measure_moe(opened(run))
    assert moe is not None
    assert moe.layers[0].imbalance == 1.0
    assert moe.layers[0].batch_imbalance == 2.0
    assert imbalance([0, 0]) is None


def test_skew_bounds_speed_per_expert_parallel_rank_and_quality_per_global_batch(
    tmp_path: Path, hand_made: Any
) -> None:
    run = hand_made(tmp_path / "r").record(parallel={"expert": 2}, model={"expert_capacity": 40})
    # two groups of two ranks; in each group one rank's experts get three quarters, in opposite halves
    for rank, tokens in enumerate([[30, 0, 5, 5], [0, 30, 5, 5], [5, 5, 30, 0], [5, 5, 0, 30]]):
        run.rank([run.step()] * 10, rank=rank, world_size=4, lines=[run.experts({"layers.1": tokens})])
    moe, [warning] = measure_moe(opened(run))
    assert moe is not None
    [layer] = moe.layers
    assert layer.batch_imbalance == 3.0
    assert layer.speed_bound == moe.speed_bound == 1.5  # 60 of 80 tokens on one of two ranks
    assert layer.speed_bound_basis == "expert_parallel_rank"
    assert layer.global_batch_imbalance == moe.global_batch_imbalance == 1.0
    assert layer.capacity_padding_share == pytest.approx(1 - 160 / (4 * 4 * 40))
    assert "dropped tokens" in warning.message
    assert "capacity padding" not in warning.message
    assert rank_imbalance([1, 2, 3], 2) is None


def test_experts_that_no_other_rank_waits_for_bound_nothing(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record(parallel={"strategy": "DDPStrategy"})
    for rank in range(2):
        run.rank([run.step()] * 10, rank=rank, world_size=2, lines=[run.experts({"layers.1": [40, 0]})])
    moe, _ = measure_moe(opened(run))
    assert moe is not None
    assert (moe.expert_parallel_size, moe.speed_bound, moe.imbalance) == (1, 1.0, 2.0)


def test_what_only_kernels_tell_of_experts(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 10, lines=[run.experts({"layers.1": [20, 20]})])

    def family(**fields: Any) -> dict[str, Any]:
        return {"count": 1, "total_s": 0.1, "union_s": 0.1, "share": 0.1, **fields}

    split = dict.fromkeys(("compute_s", "communication_s", "communication_exposed_s", "idle_s"), 0.0)
    families = {
        "gemm": family(flops_per_s=4e14),
        "grouped_gemm": family(flops_per_s=3e14),
        "communication.all_to_all": family(exposed_s=0.2),
    }
    account = {**split, "window_s": 1.0, "memory_copy_s": 0.0, "memory_copy_exposed_s": 0.0, "idle": {}}
    kernels = msgspec.convert({**account, "kernels": families}, RankKernels)
    moe, _ = measure_moe(opened(run), {"0": kernels})
    assert moe is not None
    assert moe.all_to_all_exposed_share == pytest.approx(0.2)
    assert moe.grouped_gemm_efficiency == pytest.approx(0.75)


def test_a_routed_model_that_was_not_sampled_says_how(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record(model={"parameters_total": 100, "parameters_active": 30})
    run.rank([run.step()] * 10)
    moe, [warning] = measure_moe(opened(run))
    assert moe is None
    assert "routers=" in warning.message
    dense = hand_made(tmp_path / "d").record(model={"parameters_total": 100, "parameters_active": 100})
    dense.rank([run.step()] * 10)
    assert measure_moe(opened(dense)) == (None, [])


def test_ranks_stand_side_by_side(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 40, rank=0, world_size=2, host="node-a")
    # a straggler: its input comes late, and it waits for nobody
    late = {**run.step(0.1), "input_wait": 0.03, "backward": 0.03}
    run.rank([late] * 40, rank=1, world_size=2, host="node-b")
    analysis = analyze(opened(run))
    assert [rank.host for rank in analysis.ranks] == ["node-a", "node-b"]
    assert [rank.steps for rank in analysis.ranks] == [40, 40]
    assert analysis.ranks[0].device == "NVIDIA H100 80GB HBM3 #0"
    assert analysis.ranks[0].tokens_per_s == pytest.approx(400)
    spread = analysis.rank_spread
    assert spread is not None
    assert spread.input_wait_s is not None
    assert (spread.input_wait_s.highest_rank, spread.input_wait_s.highest) == (1, pytest.approx(0.03))
    assert spread.backward_s is not None
    assert spread.backward_s.lowest_rank == 1


def test_a_single_rank_has_no_spread(simple_run: Any) -> None:
    analysis = analyze(opened(simple_run))
    assert len(analysis.ranks) == 1
    assert analysis.rank_spread is None


def test_telemetry_is_summarised_by_what_its_readings_are(tmp_path: Path, hand_made: Any) -> None:
    probe = Probe(
        probe="nvidia",
        readings={
            "power_w": {"unit": "W", "scope": "board", "kind": "gauge"},
            "energy_j": {"unit": "J", "scope": "board", "kind": "counter"},
            "clock.sm_hz": {"unit": "Hz", "scope": "die", "kind": "gauge"},
        },
    )
    samples = [
        Telemetry(
            monotonic_ns=n,
            values={"GPU-1.a.power_w": power, "GPU-1.a.energy_j": energy, "GPU-1.a.clock.sm_hz": None},
            missing={"GPU-1.a.clock.sm_hz": "not_supported"},
        )
        for n, (power, energy) in enumerate([(300.0, 1000), (500.0, 1500), (400.0, 20), (None, 120)])
    ]
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 10).node([probe], samples)
    figures = {f.reading: f for f in describe_hardware(opened(run)).telemetry}
    power = figures["power_w"]
    assert (power.device, power.mean, power.lowest, power.highest, power.samples) == ("GPU-1.a", 400, 300, 500, 3)
    assert power.unit == "W"
    # 500 J, then the counter was reset, then 100 J
    assert figures["energy_j"].increase == 600
    assert figures["clock.sm_hz"].reason == "not_supported"
    assert figures["clock.sm_hz"].mean is None


def test_devices_are_grouped_by_kind(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    for rank, name in enumerate(["NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB", "NVIDIA H200"]):
        device = {"type": "cuda", "name": name, "index": rank}
        run.rank([run.step()] * 3, rank=rank, world_size=3, device=device, host=f"n{rank // 2}")
    hardware = describe_hardware(opened(run))
    assert [(group.name, group.count) for group in hardware.devices] == [
        ("NVIDIA A100-SXM4-40GB", 2),
        ("NVIDIA H200", 1),
    ]
    assert hardware.hosts == ["n0", "n1"]


def ended(run: Any, now_s: float | None = None) -> tuple[str, str, list[str]]:
    state, reason, warnings = outcome(opened(run), time.time() if now_s is None else now_s)
    return state, reason, [warning.code for warning in warnings]


def test_outcomes(tmp_path: Path, hand_made: Any, simple_run: Any) -> None:
    assert ended(simple_run) == ("completed", "", [])
    failed = hand_made(tmp_path / "f").record()
    failed.rank([failed.step()] * 3, end="failed", reason="ValueError: loss is nan")
    assert ended(failed) == ("failed", "ValueError: loss is nan", [])
    cut = hand_made(tmp_path / "k").record()
    cut.rank([cut.step()] * 37, end=None)
    last_s = 1_760_000_000.0 + 2.0 + 3.7
    assert ended(cut, last_s + 9.9) == ("running", "", [])
    assert ended(cut, last_s + 10.1) == ("killed", "", ["killed"])
    [warning] = [w for w in analyze(opened(cut)).warnings if w.code == "killed"]
    assert "after step 37" in warning.message
    assert "last second" in warning.message


def test_one_rank_without_a_closing_line_is_a_kill(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 5, rank=0, world_size=2)
    run.rank([run.step()] * 5, rank=1, world_size=2, end=None)
    assert ended(run)[0] == "killed"
    run.rank([run.step()] * 5, rank=0, world_size=2, end="failed", reason="RuntimeError: peer is gone")
    assert ended(run)[0] == "failed"


def test_the_last_attempt_decides(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 5, end=None)
    run.rank([run.step()] * 5, attempt=1, start_s=30.0, first_step=6)
    assert ended(run)[0] == "completed"


def test_what_the_record_and_the_log_warn_of_is_told_once(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record(warnings=[{"code": "experts_off", "message": "no router"}])
    said = Event(name="warning", monotonic_ns=5_003_000_000_000, message="no router", data={"code": "experts_off"})
    for rank in (0, 1):
        odd = [run.event("non_finite", f"loss is nan at step {n}") for n in range(9)]
        run.rank([run.step()] * 10, rank=rank, world_size=2, lines=[said, *odd])
    found = analyze(opened(run)).warnings
    assert [w.message for w in found if w.code == "experts_off"] == ["no router"]
    odd_ones = [w.message for w in found if w.code == "non_finite"]
    assert len(odd_ones) == 6
    assert odd_ones[-1] == "… and 4 more of non_finite"


def test_a_torn_line_is_told(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 60, end=None)
    log = run.path / "attempt-000" / "rank-00000.ndjson"
    log.write_bytes(log.read_bytes()[:-40])
    analysis = analyze(opened(run))
    assert "torn_line" in codes(analysis)
    assert analysis.efficiency.steps.total == 50


def test_a_single_rank_log_is_enough_for_throughput(simple_run: Any) -> None:
    analysis = analyze(open_run(str(simple_run.path / "attempt-000" / "rank-00000.ndjson")))
    assert analysis.efficiency.tokens_per_s.median == pytest.approx(400)
    assert analysis.efficiency.mfu.value is None
    assert {"single_log", "no_flops"} <= set(codes(analysis))
