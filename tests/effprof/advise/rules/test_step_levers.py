"""Rules on batch, memory, precision and kernels: a badly set run provokes each, a well-set one provokes none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effprof.advise.changes import check_changes
from effprof.advise.registry import all_rules, find_rule
from effprof.advise.rule import Missing
from effprof.analysis.analyze import analyze
from effprof.analysis.model import Analysis, Finding, OperatorFigures
from effprof.runlog.reader import open_run
from effprof.trace.summary import Family, Idle, RankKernels

AREAS = ("batch", "memory", "precision", "kernels")
MODULES = ("batch", "memory", "recompute", "precision", "kernels", "host")
GIB = 1 << 30
WELL_SET: dict[str, Any] = {
    "accumulate": 1,
    "micro_batch": 16,
    "input_shapes": 1,
    "precision": "bf16-mixed",
    "low_precision_units": ["fp16", "bf16", "tf32"],
    "fp32_products_run_in": "tf32",
    "gradient_checkpointing": False,
    "hidden_size": 4096,
    "vocab_size": 32000,
    "optimizer_can_fuse": True,
    "optimizer_fused": True,
    "optimizers": ["AdamW"],
    "optimizer_bits": 32,
    "is_compiled": True,
    "compilations": 2,
    "compilations_late": 0,
    "attn_implementation": "sdpa",
    "sdpa_backends": ["flash", "efficient", "math"],
    "unaligned_linear_share": 0.0,
    "gc_share": 0.001,
    "log_every_n_steps": 50,
    "detect_anomaly": False,
    "deterministic": False,
    "skipped_steps_at_least": 0,
}


def _well_set(hand_made: Any, path: Path, **changed: Any) -> Analysis:
    """A log of 30 steps at 0.5 of the peak, a full kernel window, two thirds of the memory used; then what differs."""
    config = {**WELL_SET, **changed.pop("config", {})}
    run = hand_made(path).record(config={k: v for k, v in config.items() if v is not None})
    steps = [run.step(0.082, positions=changed.get("positions", 40.0)) for _ in range(30)]
    run.rank(steps, tail=[("logging", changed.get("logging_s", 0.0))])
    analysis = analyze(open_run(str(path)))
    memory, gib = analysis.memory, changed.get("peak_gib", 56.0)
    memory.peak_allocated_bytes = memory.peak_reserved_bytes = int(gib * GIB)
    memory.optimizer_bytes = int(changed.get("optimizer_gib", 10.0) * GIB)
    memory.activations_bytes = int(changed.get("activations_gib", 20.0) * GIB)
    memory.fragmentation_bytes = int(changed.get("fragmentation_gib", 1.0) * GIB)
    memory.alloc_retries = changed.get("retries", 0)
    memory.ranks[0].peak_allocated_bytes = memory.ranks[0].peak_reserved_bytes = int(gib * GIB)
    analysis.run.flops["recompute_share"] = changed.get("recompute_share", 0.0)
    analysis.run.flops["by_dtype"] = {changed.get("dtype", "bf16"): 1.0}
    analysis.run.parallel.update(changed.get("parallel", {}))
    analysis.hardware.ceilings = changed.get("ceilings", {"bf16": 4e14, "fp32": 5e13})
    analysis.kernel_account = {"0": _window(changed.get("families", {}), changed.get("host_bound", 0.02))}
    analysis.account.lines["compile"] = changed.get("compile_s", 0.0)
    if "mfu" in changed:
        analysis.efficiency.hfu.value = analysis.efficiency.mfu.value = changed["mfu"]
    if "optimizer_share" in changed:
        analysis.account.lines["step.optimizer"] = 0.0
        others = sum(v for k, v in analysis.account.lines.items() if k.startswith("step."))
        share = changed["optimizer_share"]
        analysis.account.lines["step.optimizer"] = others * share / (1 - share)
    if changed.get("world_size"):
        analysis.run.world_size = changed["world_size"]
        analysis.account.lines["step.exposed_communication"] = changed["exposed_s"]
        analysis.efficiency.step_time_s.p95 = 2 * (analysis.efficiency.step_time_s.median or 0.0)
    return analysis


def _window(families: dict[str, float], host_bound: float) -> RankKernels:
    shares = {"gemm": 0.7, "attention": 0.1, "elementwise": 0.05, "normalisation": 0.02, "reduction": 0.02, **families}
    kernels = {n: Family(count=10, total_s=s, union_s=s, share=s) for n, s in shares.items()}
    return RankKernels(
        window_s=1.0,
        compute_s=0.9,
        communication_s=0.0,
        communication_exposed_s=0.0,
        memory_copy_s=0.0,
        memory_copy_exposed_s=0.0,
        idle_s=host_bound,
        idle=Idle(host_bound_s=host_bound),
        kernels=kernels,
        devices=1,
        events=100,
        trace="trace.json",
    )


RECOMPUTING = {"gradient_checkpointing": True, "gradient_checkpointing_policy": "full"}
SYMPTOMS: dict[str, dict[str, Any]] = {
    "batch-micro-up": {"config": {"accumulate": 4}, "peak_gib": 20.0, "mfu": 0.2},
    "batch-tiny-micro": {"config": {"accumulate": 4, "micro_batch": 1}, "peak_gib": 20.0, "mfu": 0.1},
    "batch-length-group": {"positions": 50.0},
    "batch-pack": {"positions": 80.0},
    "batch-length-balance": {"config": {"input_shapes": 50}, "world_size": 8, "exposed_s": 1.0},
    "prec-tf32": {"config": {"fp32_products_run_in": "fp32"}, "dtype": "fp32"},
    "prec-bf16": {"dtype": "fp32"},
    "prec-fp16-skip": {"config": {"precision": "16-mixed", "skipped_steps_at_least": 3}},
    "prec-fp8": {"config": {"low_precision_units": ["bf16", "fp8"]}},
    "prec-fp4": {"config": {"low_precision_units": ["bf16", "fp8", "fp4"]}, "dtype": "fp8"},
    "mem-recompute-off": {"config": RECOMPUTING, "recompute_share": 0.33, "peak_gib": 30.0},
    "mem-recompute-selective": {"config": RECOMPUTING, "recompute_share": 0.33, "peak_gib": 60.0},
    "mem-recompute-on": {"peak_gib": 76.0, "activations_gib": 50.0},
    "mem-activation-offload": {"config": RECOMPUTING, "peak_gib": 76.0, "activations_gib": 50.0},
    "mem-8bit-optimizer": {"peak_gib": 76.0, "optimizer_gib": 40.0},
    "mem-offload-stall": {"parallel": {"cpu_offload": True}, "peak_gib": 20.0, "optimizer_share": 0.4},
    "mem-fragmentation": {"peak_gib": 76.0, "fragmentation_gib": 20.0},
    "mem-alloc-retries": {"retries": 3},
    "mem-logits": {"peak_gib": 76.0, "config": {"vocab_size": 10**9}},
    "ker-fused-optimizer": {"config": {"optimizer_fused": False}},
    "ker-compile": {"config": {"is_compiled": False}, "families": {"elementwise": 0.3}},
    "ker-recompile": {"config": {"compilations": 20, "compilations_late": 18}, "compile_s": 1.0},
    "ker-launch-bound": {"host_bound": 0.3},
    "ker-attention": {"config": {"attn_implementation": "eager"}, "families": {"reduction": 0.2}},
    "ker-alignment": {"config": {"unaligned_linear_share": 0.4}},
    "ker-channels-last": {"config": {"convolutions": 50, "channels_last": False}, "families": {"convolution": 0.5}},
    "ker-gc": {"config": {"gc_share": 0.05}},
    "ker-log-often": {"config": {"log_every_n_steps": 1}, "logging_s": 0.5},
    "ker-anomaly": {"config": {"detect_anomaly": True}},
    "ker-deterministic": {"config": {"deterministic": True}},
}


def _apply(name: str, analysis: Analysis) -> list[Finding]:
    return find_rule(name).apply(analysis)


def test_every_rule_of_these_files_has_a_symptom_here() -> None:
    prefix = "effprof.advise.rules."
    names = {each.id for each in all_rules() if each.find.__module__.removeprefix(prefix) in MODULES}
    assert names == set(SYMPTOMS)


@pytest.mark.parametrize("name", SYMPTOMS)
def test_symptom_is_found_with_a_bounded_gain(hand_made: Any, tmp_path: Path, name: str) -> None:
    (finding,) = _apply(name, _well_set(hand_made, tmp_path / "run", **dict(SYMPTOMS[name])))
    assert finding.knobs
    assert finding.gain.low <= finding.gain.likely <= finding.gain.high <= finding.gain.bound
    check_changes(finding.changes)


@pytest.mark.parametrize("name", SYMPTOMS)
def test_well_set_run_is_left_alone(hand_made: Any, tmp_path: Path, name: str) -> None:
    assert _apply(name, _well_set(hand_made, tmp_path / "run")) == []


def test_larger_micro_batches_keep_the_global_batch(hand_made: Any, tmp_path: Path) -> None:
    (finding,) = _apply("batch-tiny-micro", _well_set(hand_made, tmp_path / "run", **SYMPTOMS["batch-tiny-micro"]))
    assert finding.changes["micro_batch"] * finding.changes["accumulate"] == 4


def test_larger_micro_batches_save_what_each_operator_costs_without_data(hand_made: Any, tmp_path: Path) -> None:
    run = _well_set(hand_made, tmp_path / "run", **SYMPTOMS["batch-tiny-micro"])
    run.operators = OperatorFigures(per_step=4000, dispatch_s=1e-6, fixed_share=0.4, product_share=0.3)
    (finding,) = _apply("batch-tiny-micro", run)
    saved = 1 - finding.changes["accumulate"] / 4
    assert finding.gain.likely == pytest.approx(1 / (1 - 0.4 * saved) - 1)
    assert finding.gain.low < finding.gain.likely < finding.gain.high <= finding.gain.bound


def test_recompute_is_bounded_by_one_forward_pass(hand_made: Any, tmp_path: Path) -> None:
    run = _well_set(hand_made, tmp_path / "run", **SYMPTOMS["mem-recompute-off"])
    (finding,) = _apply("mem-recompute-off", run)
    assert finding.gain.bound == pytest.approx(1 / (1 - 0.3) - 1, rel=1e-6)
    assert finding.gain.low == pytest.approx(1 / (1 - 0.9 * 0.8 * 0.33 / 1.33) - 1, rel=1e-6)


def test_narrow_products_of_a_cpu_lose_to_casts_what_bf16_gains(hand_made: Any, tmp_path: Path) -> None:
    def findings(width: int) -> list[Finding]:
        facts = {"low_precision_units": ["avx512_bf16"], "hidden_size": width}
        ceilings = {"bf16": 2.1e11, "fp32": 1e11}
        run = _well_set(hand_made, tmp_path / f"{width}", dtype="fp32", config=facts, ceilings=ceilings)
        run.hardware.devices[0].type, run.kernel_account = "cpu", {}
        run.operators = OperatorFigures(per_step=4000, dispatch_s=1e-6, fixed_share=0.1, product_share=0.75)
        return _apply("prec-bf16", run)

    assert findings(128) == []
    (narrow,), (wide,) = findings(256), findings(512)
    assert 0.2 < narrow.gain.low < narrow.gain.likely < wide.gain.likely < wide.gain.bound
    assert wide.gain.bound == pytest.approx(1 / (0.25 + 0.75 / 2.1) - 1)


def test_no_bf16_where_its_ceiling_is_no_higher(hand_made: Any, tmp_path: Path) -> None:
    """avx512_bf16 of some hosts is emulated: the flag alone must not bring the finding."""
    units = {"low_precision_units": ["avx512_bf16"]}
    run = _well_set(hand_made, tmp_path / "run", dtype="fp32", config=units, ceilings={"bf16": 1e11, "fp32": 1e11})
    assert _apply("prec-bf16", run) == []


def test_late_compilations_are_charged_their_part_of_the_compile_time(hand_made: Any, tmp_path: Path) -> None:
    run = _well_set(hand_made, tmp_path / "run", **SYMPTOMS["ker-recompile"])
    (finding,) = _apply("ker-recompile", run)
    assert finding.gain.bound == pytest.approx(1 / (1 - 0.9 / run.account.wall_s) - 1)


def test_missing_facts_are_named(hand_made: Any, tmp_path: Path) -> None:
    run = _well_set(hand_made, tmp_path / "run", config={"gc_share": None})
    with pytest.raises(Missing, match="gc_share"):
        _apply("ker-gc", run)
