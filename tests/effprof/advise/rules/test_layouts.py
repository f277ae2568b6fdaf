"""Rules on layouts, pipelines, experts, sharing, plans and cost: a job provokes each, a well-set one provokes none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jobs import DDP, DEEPSPEED, FSDP, FSDP2, GIB, job, window
from traces import collective, document, kernel, write

from effprof.advise.changes import check_changes
from effprof.advise.published import published_changes
from effprof.advise.registry import all_rules, find_rule
from effprof.advise.rule import Missing
from effprof.advise.rules import pipeline
from effprof.analysis.kernel import analyze_traces
from effprof.analysis.model import Analysis, Finding

MODULES = (
    "communication",
    "cost",
    "moe",
    "moe_layout",
    "parallelism",
    "pipeline",
    "planning",
    "ranks",
    "sequence",
    "shards",
    "sharing",
)
OWN = [rule for rule in all_rules() if rule.find.__module__.rpartition(".")[2] in MODULES]
EVEN = {"layers.0": [250] * 8}
SKEWED = {"layers.0": [900, 900, 50, 50, 25, 25, 25, 25]}
SKEWED_LIGHTLY = {"layers.0": [500, 500, 250, 250, 125, 125, 125, 125]}
TENSOR = {"kind": "fsdp2", "tensor": 8, "sharding": "FULL_SHARD", "reshard_after_forward": False}
PIPELINE = {"kind": "ddp", "pipeline": 8, **{k: v for k, v in DDP.items() if k != "kind"}}
CPU = {"type": "cpu", "index": 0, "name": "Xeon"}
H100 = {"type": "cuda", "index": 0, "name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_520_809_984}
A100 = {"type": "cuda", "index": 0, "name": "NVIDIA A100-SXM4-80GB", "memory_bytes": 85_094_825_984}
GOOD = window({"all_reduce": 0.02}, hidden={"all_reduce": 0.2}, compute=0.94)


def steps(rank: int, slow: int = -1, late: int = -1, lead: float = 0.02) -> list[dict[str, Any]]:
    """Steps of 0.1 s: a slow rank's forward is longer by `lead`, a late one's input; the others wait in backward."""
    own = {"input_wait": 0.002, "forward": 0.03, "backward": 0.06, "optimizer": 0.008}
    if slow >= 0:
        own["forward" if rank == slow else "backward"] += lead
    if late >= 0:
        own["input_wait" if rank == late else "backward"] += lead
    return [{**own, "tokens": 40.0, "samples": 2.0, "positions": 40.0, "pairs": 1000.0} for _ in range(30)]


PROVOKED: dict[str, dict[str, Any]] = {
    "par-ddp-over-dp": {"ranks": 1, "kernels": window(compute=0.5, devices=4), "parallel": {}},
    "par-fsdp-stage-down": {
        "kernels": window({"all_gather": 0.12}, hidden={"all_gather": 0.2}),
        "parallel": FSDP2,
        "peak_gib": 40.0,
    },
    "par-shard-states": {"kernels": GOOD, "peak_gib": 76.0, "model": {"optimizer_bytes": 40 * GIB}},
    "par-hsdp": {
        "kernels": window({"all_gather": 0.12, "reduce_scatter": 0.06}),
        "parallel": FSDP,
        "ranks": 16,
        "nodes": 2,
        "peak_gib": 40.0,
    },
    "par-less-tensor": {"kernels": window({"all_reduce": 0.2}), "parallel": TENSOR, "peak_gib": 30.0},
    "par-tp-in-node": {"kernels": window({"all_reduce": 0.3}), "parallel": TENSOR, "ranks": 8, "nodes": 2},
    "par-sp": {
        "kernels": window({"all_reduce": 0.1}, counts={"all_reduce": 256}),
        "parallel": TENSOR,
        "peak_gib": 76.0,
    },
    "par-async-tp": {"kernels": window({"all_reduce": 0.1}), "parallel": TENSOR},
    "par-cp": {
        "kernels": GOOD,
        "peak_gib": 76.0,
        "config": {"micro_batch": 1},
        "steps": [[{"forward": 0.03, "backward": 0.05, "samples": 1.0, "tokens": 16384.0, "positions": 16384.0}] * 30]
        * 8,
    },
    "par-pp-micro-batches": {
        "kernels": window(bubble=0.25, compute=0.7),
        "parallel": PIPELINE,
        "config": {"accumulate": 16},
    },
    "par-pp-interleave": {
        "kernels": window(bubble=0.25, compute=0.7),
        "parallel": PIPELINE,
        "config": {"accumulate": 16},
    },
    "par-pp-zero-bubble": {"parallel": PIPELINE, "config": {"accumulate": 64}},
    "par-pp-balance": {"kernels": [window(compute=0.9 if r == 7 else 0.6) for r in range(8)], "parallel": PIPELINE},
    "moe-grouped-gemm": {"experts": EVEN, "config": {"experts_implementation": "eager"}},
    "moe-a2a-overlap": {
        "kernels": window({"all_to_all": 0.25}),
        "experts": EVEN,
        "parallel": {"kind": "fsdp2", "expert": 8},
    },
    "moe-dispatcher": {
        "kernels": window({"all_to_all": 0.25}),
        "experts": EVEN,
        "parallel": {"expert": 8},
        "nodes": 2,
    },
    "moe-imbalance": {
        "kernels": window({"all_to_all": 0.05}, families={"grouped_gemm": 0.4}),
        "experts": SKEWED,
        "parallel": {"expert": 4},
    },
    "moe-router-collapse": {"experts": {"layers.0": [1700, 100, 50, 50, 25, 25, 25, 25]}},
    "moe-dropped-tokens": {"experts": EVEN, "dropped": [200]},
    "moe-capacity-padding": {
        "experts": EVEN,
        "model": {"expert_capacity": 500},
        "kernels": window(families={"grouped_gemm": 0.4}),
    },
    "moe-expert-parallel": {
        "kernels": window({"all_gather": 0.3, "reduce_scatter": 0.1}),
        "experts": EVEN,
        "parallel": FSDP2,
    },
    "moe-parallel-folding": {"kernels": window({"all_reduce": 0.3}), "experts": EVEN, "parallel": TENSOR},
    "com-overlap-ddp": {"kernels": window({"all_reduce": 0.15}, hidden={"all_reduce": 0.02})},
    "com-find-unused": {"parallel": {**DDP, "find_unused_parameters": True}},
    "com-no-sync": {
        "kernels": window({"all_reduce": 0.2}, bytes_of={"all_reduce": 2 * 4 * 4 * 8e9}),
        "config": {"accumulate": 4},
    },
    "com-compress": {"kernels": window({"all_reduce": 0.4}, bytes_of={"all_reduce": 2e9})},
    "com-accumulate": {"kernels": window({"all_reduce": 0.4})},
    "com-prefetch-shards": {
        "kernels": window({"all_gather": 0.12}),
        "parallel": {**FSDP, "backward_prefetch": "none"},
    },
    "com-quantised-shards": {
        "kernels": window({"all_gather": 0.3}),
        "parallel": DEEPSPEED,
        "ranks": 16,
        "nodes": 2,
    },
    "com-fp8-gather": {
        "kernels": window({"all_gather": 0.12}),
        "parallel": FSDP2,
        "config": {"precision": "float8"},
    },
    "com-straggler": {"devices": [CPU] * 4, "ranks": 4, "steps": [steps(r, slow=2) for r in range(4)]},
    "com-straggler-input": {"devices": [CPU] * 4, "ranks": 4, "steps": [steps(r, late=1) for r in range(4)]},
    "com-throttle": {
        "telemetry": [
            {"0.throttle_hw_thermal_s": 0.5 * n, "0.sm_clock_mhz": 1400, "0.sm_clock_max_mhz": 1980} for n in range(5)
        ],
    },
    "com-slow-clock": {
        "telemetry": [{"0.sm_clock_mhz": 1700, "1.sm_clock_mhz": 1700, "2.sm_clock_mhz": 1300}] * 4,
    },
    "com-mixed-chips": {"devices": [H100] * 4 + [A100] * 4},
    "share-device": {"ranks": 1, "kernels": window(compute=0.3, idle=0.7), "peak_gib": 10.0, "parallel": {}},
    "plan-tokens-per-parameter": {"config": {"max_steps": 10_000_000}},
    "plan-fewer-nodes": {"kernels": window({"all_gather": 0.5}), "parallel": FSDP, "ranks": 16, "nodes": 2},
    "cost-power-cap": {
        "kernels": window({"all_reduce": 0.4}, compute=0.5),
        "telemetry": [{"0.power_w": 600, "0.power_limit_w": 700}] * 4,
    },
    "cost-idle-device": {"tail": [("unattributed", 1200.0)]},
}


def finding(rule: str, analysis: Analysis) -> Finding | None:
    found = find_rule(rule).apply(analysis)
    return found[0] if found else None


@pytest.mark.parametrize("rule", PROVOKED)
def test_a_job_provokes_it(tmp_path: Path, hand_made: Any, rule: str) -> None:
    found = finding(rule, job(hand_made, tmp_path / "r", **PROVOKED[rule]))
    assert found is not None
    gain = found.gain
    assert 0 <= gain.low <= gain.likely <= gain.high <= gain.bound
    assert found.evidence
    assert found.knobs
    check_changes(found.changes)


CONTROLS: dict[str, dict[str, Any]] = {
    "ddp": {"kernels": GOOD},
    "fsdp2": {
        "kernels": window({"all_gather": 0.02, "reduce_scatter": 0.01}, hidden={"all_gather": 0.3}, compute=0.94),
        "parallel": {**FSDP2, "tensor": 1, "replicas": 1},
    },
    "hybrid over two nodes": {
        "kernels": window({"all_gather": 0.02}, hidden={"all_gather": 0.3}, compute=0.94),
        "parallel": {**FSDP, "sharding": "HYBRID_SHARD"},
        "ranks": 16,
        "nodes": 2,
    },
    "tensor parallel": {"kernels": window({"all_reduce": 0.02}, compute=0.95), "parallel": TENSOR},
    "pipeline": {
        "kernels": window(bubble=0.03, compute=0.95),
        "parallel": PIPELINE,
        "config": {"accumulate": 128},
    },
    "experts": {
        "kernels": window({"all_to_all": 0.03}, families={"grouped_gemm": 0.4}, compute=0.95),
        "experts": EVEN,
        "dropped": [0],
        "parallel": {"kind": "fsdp2", "expert": 8, "sharding": "FULL_SHARD", "reshard_after_forward": True},
        "config": {"experts_implementation": "grouped_mm"},
    },
    "skewed experts on whole layers": {
        "experts": SKEWED_LIGHTLY,
        "parallel": {**DDP, "expert": 1},
        "kernels": GOOD,
    },
    "cpu ranks": {"devices": [CPU] * 4, "ranks": 4, "steps": [steps(r) for r in range(4)]},
    "healthy telemetry": {
        "kernels": GOOD,
        "telemetry": [
            {
                f"{device}.{name}": value
                for device in range(8)
                for name, value in {
                    "sm_clock_mhz": 1700 + 10 * device,
                    "sm_clock_max_mhz": 1980,
                    "throttle_hw_thermal_s": 0.0,
                    "power_w": 650,
                    "power_limit_w": 700,
                }.items()
            }
        ]
        * 4,
    },
}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_well_set_job_provokes_none(tmp_path: Path, hand_made: Any, control: str) -> None:
    analysis = job(hand_made, tmp_path / "r", **CONTROLS[control])
    assert analysis.efficiency.mfu.value == pytest.approx(0.5, abs=0.1) or "cpu" in control
    spoken = {}
    for rule in OWN:
        try:
            found = rule.apply(analysis)
        except Missing:
            continue
        if found:
            spoken[rule.id] = found[0].evidence
    assert spoken == {}


def test_every_rule_is_provoked_here_or_in_a_test_of_its_own() -> None:
    apart = {"moe-small-groups", "com-late-rank", "com-topology", "share-slice", "cost-smaller-chip"}
    assert {rule.id for rule in OWN} == set(PROVOKED) | apart


def test_groups_that_are_small(tmp_path: Path, hand_made: Any) -> None:
    analysis = job(hand_made, tmp_path / "r", window(families={"grouped_gemm": 0.4}), experts=EVEN)
    assert analysis.moe is not None
    with pytest.raises(Missing):
        finding("moe-small-groups", analysis)
    analysis.moe.grouped_gemm_efficiency = 0.3
    found = finding("moe-small-groups", analysis)
    assert found is not None
    assert 0 < found.gain.likely < found.gain.bound
    analysis.moe.grouped_gemm_efficiency = 0.8
    assert finding("moe-small-groups", analysis) is None


def test_a_small_run_fits_a_slice_and_a_smaller_chip(tmp_path: Path, hand_made: Any) -> None:
    analysis = job(hand_made, tmp_path / "r", GOOD, ranks=1, parallel={}, peak_gib=8.0)
    for rule in ("share-slice", "cost-smaller-chip"):
        assert finding(rule, analysis) is None  # half of the peak is used
    analysis.efficiency.mfu.value, analysis.efficiency.mfu.peak_flops_per_s = 0.05, 989.4e12
    analysis.efficiency.model_flops_per_s_per_device.median = 0.05 * 989.4e12
    found = finding("share-slice", analysis)
    assert found is not None
    assert "1g.10gb" in found.title
    found = finding("cost-smaller-chip", analysis)
    assert found is not None
    assert "A100" in found.title or "H100" in found.title or "A30" in found.title or "H20" in found.title


def test_a_link_that_is_not_used(tmp_path: Path, hand_made: Any) -> None:
    slow = job(hand_made, tmp_path / "slow", window({"all_reduce": 0.4}, bytes_of={"all_reduce": 4e9}))
    assert slow.hardware.interconnect_bytes_per_s
    found = finding("com-topology", slow)
    assert found is not None
    fast = job(hand_made, tmp_path / "fast", window({"all_reduce": 0.4}, bytes_of={"all_reduce": 80e9}))
    assert finding("com-topology", fast) is None


def test_a_straggler_among_equal_ranks_is_named_and_bounded(tmp_path: Path, hand_made: Any) -> None:
    analysis = job(hand_made, tmp_path / "r", **PROVOKED["com-straggler"])
    found = finding("com-straggler", analysis)
    assert found is not None
    assert "rank 2" in found.title
    assert found.gain.low == pytest.approx(1 / (1 - 0.02 / 0.12) - 1, rel=0.02)
    assert finding("com-straggler-input", analysis) is None


def test_ranks_that_do_not_wait_are_no_stragglers(tmp_path: Path, hand_made: Any) -> None:
    uneven = [steps(r) for r in range(4)]
    for row in uneven[2]:
        row["forward"] += 0.02
        row["backward"] += 0.02
    analysis = job(hand_made, tmp_path / "r", ranks=4, devices=[CPU] * 4, steps=uneven)
    assert finding("com-straggler", analysis) is None


def test_two_stages_down_need_the_memory(tmp_path: Path, hand_made: Any) -> None:
    full = {**PROVOKED["par-fsdp-stage-down"], "peak_gib": 70.0}
    assert finding("par-fsdp-stage-down", job(hand_made, tmp_path / "r", **full)) is None


def test_grouping_gains_more_the_fewer_tokens_an_expert_has(tmp_path: Path, hand_made: Any) -> None:
    likely = []
    for tokens in (512, 256, 128, 32):
        analysis = job(
            hand_made,
            tmp_path / str(tokens),
            ranks=1,
            devices=[CPU],
            parallel={},
            experts={"layers.0": [tokens] * 8},
            config={"experts_implementation": "eager"},
        )
        found = finding("moe-grouped-gemm", analysis)
        assert found is not None
        assert found.changes == {"experts_implementation": "grouped_mm"}
        likely.append(found.gain.likely)
    assert likely == sorted(likely)


PUBLISHED = [each for each in published_changes() if pipeline.QI in each.source and "ZB-2p" not in each.what]
SHAPES = {"1.5B": (8, 24), "6.2B": (8, 32), "14.6B": (16, 48), "28.3B": (32, 64)}  # stages, layers with both ends


def test_published_pipelines_gained_what_the_closed_form_promises() -> None:
    inside = []
    for pair in PUBLISHED:
        stages, layers = SHAPES[re.search(r"GPT (\S+)", pair.what)[1]]  # type: ignore[index]
        counts = [int(number) for number in re.findall(r"(\d+)(?= micro-batches|$)", pair.what)]
        between = re.search(r"(\d+) -> (\d+)$", pair.what)
        if between:
            before, after = int(between[1]), int(between[2])
            bubble = pipeline.closed_form_bubble(stages, before)
            gain = pipeline.gain_of_more_micro_batches(bubble, before, after)
        elif "interleaved" in pair.what:
            bubble = pipeline.closed_form_bubble(stages, counts[0])
            gain = pipeline.gain_of_interleaving(bubble, layers // stages)
        else:
            gain = pipeline.gain_of_zero_bubble(pipeline.closed_form_bubble(stages, counts[0]))
        inside.append(gain.low <= pair.speed_ratio - 1 <= gain.high)
    assert len(inside) >= 20
    assert sum(inside) >= 0.9 * len(inside)


SHARED = Path(__file__).resolve().parents[4].parent / "shared" / "traces"


@pytest.mark.parametrize(("name", "speaks"), [("hta_nccl.json.gz", True), ("hta_test.json.gz", False)])
def test_real_traces_of_gradient_reductions(name: str, speaks: bool) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip("../shared/traces is not here")
    analysis, _ = analyze_traces(str(path))
    assert (finding("com-overlap-ddp", analysis) is not None) == speaks


def test_a_late_rank_in_traces(tmp_path: Path) -> None:
    for rank in (0, 1):
        events = [kernel("ampere_sgemm_128x64_tn", 0, 500.0 + 300 * rank)]
        events += [collective("allreduce", 510.0 + 300 * rank, 400 - 300 * rank, sequence=1)]
        events += [kernel("ampere_sgemm_128x64_tn", 920, 300)]
        write(tmp_path / f"r{rank}.json.gz", document(events, rank=rank))
    analysis, _ = analyze_traces(str(tmp_path))
    found = finding("com-late-rank", analysis)
    assert found is not None
    assert "rank 1" in found.title
