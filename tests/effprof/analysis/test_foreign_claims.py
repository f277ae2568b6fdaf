"""Facts that a user adds to another tool's log, and why its claim is not the exact figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effprof.analysis.foreign import examine_foreign
from effprof.analysis.foreign_given import Given
from effprof.analysis.model import Analysis
from effprof.cli.main import main
from effprof.errors import EffprofError
from effprof.workload.architecture import from_hf_config
from effprof.workload.flops import counts_for, flops_model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
LENGTH, BATCH, DEVICES, SECONDS = 4096, 64, 8, 0.5
RATE = LENGTH * BATCH / SECONDS / DEVICES  # tokens/s of a device
A100, H100 = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"


def per_token(model: dict[str, Any], convention: str) -> float:
    total = flops_model(from_hf_config(model)).evaluate(counts_for(from_hf_config(model), 1, LENGTH), convention)
    assert total is not None
    return total / LENGTH


def megatron(flops_per_token: float, head: str = "") -> str:
    """A log whose TFLOP/s come from these FLOPs; its only fact is the global batch of its lines."""
    return head + "".join(
        f" iteration {step:8d}/     500 | consumed samples: {step * BATCH:12d} | elapsed time per iteration (ms): "
        f"{1000 * SECONDS:.1f} | throughput per GPU (TFLOP/s/GPU): {flops_per_token * RATE / 1e12:.4f} | "
        f"global batch size:    {BATCH} | lm loss: {9 - 0.1 * step:E} |\n"
        for step in range(1, 13)
    )


def nanogpt(mfu: float) -> str:
    head = f"tokens per iteration will be: {LENGTH * BATCH:,}\n"
    return head + "".join(
        f"iter {step}: loss {9 - step / 20:.4f}, time {1000 * SECONDS:.2f}ms, mfu {100 * mfu:.2f}%\n"
        for step in range(1, 30)
    )


@pytest.fixture
def analyse(tmp_path: Path) -> Callable[..., Analysis]:
    def run(text: str, **given: Any) -> Analysis:
        (tmp_path / "log").write_text(text)
        facts = {"sequence_length": LENGTH, "devices": DEVICES, "model": LLAMA, **given}
        return examine_foreign(str(tmp_path / "log"), Given(**facts)).analysis

    return run


def messages(analysis: Analysis) -> dict[str, str]:
    return {warning.code: warning.message for warning in analysis.warnings}


def test_given_facts_stand_in_for_those_that_a_log_lacks(analyse: Callable[..., Analysis]) -> None:
    text = "".join(f"step:{n}/100 train_loss:5.0 train_time:{500 * n}ms step_avg:500.00ms\n" for n in range(1, 60))
    found = analyse(text, global_batch=BATCH, device=H100, dtype="float16")
    efficiency = found.efficiency
    assert efficiency.tokens_per_s.median == pytest.approx(LENGTH * BATCH / SECONDS)
    assert efficiency.tokens_per_s_per_device.median == pytest.approx(RATE)
    assert efficiency.mfu.value == pytest.approx(per_token(LLAMA, "exact") * RATE / 989.4e12)
    assert efficiency.mfu.dtype == "fp16"
    assert (found.run.world_size, found.run.config["sequence_length"]) == (DEVICES, LENGTH)
    assert not {"devices_unknown", "not_in_log", "dtype_assumed", "given_instead"} & messages(found).keys()


def test_a_given_fact_that_contradicts_the_log_is_said(analyse: Callable[..., Analysis]) -> None:
    head = "  world_size ......... 16\n  params_dtype ....... torch.float16\n"
    found = analyse(megatron(1e9, head), global_batch=2 * BATCH, dtype="fp16")
    warnings = [(warning.code, warning.message) for warning in found.warnings]
    assert ("given_instead", "--devices 8 is taken in place of the log's own 16") in warnings
    assert sum(code == "given_instead" for code, _ in warnings) == 1
    assert "given_unused" in messages(found)
    assert found.efficiency.samples_per_s.median == pytest.approx(BATCH / SECONDS)


def test_an_assumed_dtype_is_said_only_where_it_matters(analyse: Callable[..., Analysis]) -> None:
    assert "bf16" in messages(analyse(megatron(1e9), device=H100))["dtype_assumed"]
    assert "dtype_assumed" not in messages(analyse(megatron(1e9), device=H100, dtype="fp8"))
    given = analyse(megatron(1e9), peak_tflops=500.0)
    assert "dtype_assumed" not in messages(given)
    assert given.efficiency.mfu.dtype is None
    v100 = analyse(megatron(1e9), device="Tesla V100-SXM2-32GB")
    assert "no dense bf16 rate" in messages(v100)["no_peak"]
    assert v100.efficiency.mfu.value is None


@pytest.mark.parametrize(
    ("factor", "convention", "words"),
    [
        (1.0, "palm", "as the convention palm does"),
        (1.0, "6n", "as the convention 6n does"),
        (4 / 3, "palm", "as the convention palm does, and a third more: another forward pass"),
        (3.0, "palm", "as no known convention does"),
    ],
)
def test_counted_flops_are_named(analyse: Callable[..., Analysis], factor: float, convention: str, words: str) -> None:
    found = analyse(megatron(factor * per_token(LLAMA, convention)), device=H100)
    why = messages(found)["claimed_mfu_differs"]
    ratio = factor * per_token(LLAMA, convention) / per_token(LLAMA, "exact")
    assert f"it counts {ratio:.3f} × the exact FLOPs, {words}" in why


def test_a_claim_that_is_exact_needs_no_reason(analyse: Callable[..., Analysis]) -> None:
    assert "claimed_mfu_differs" not in messages(analyse(megatron(per_token(LLAMA, "exact")), device=H100))


def test_experts_that_do_not_compute_are_named(analyse: Callable[..., Analysis]) -> None:
    spec = from_hf_config(MIXTRAL)
    everything = per_token(MIXTRAL, "palm") + 6 * (spec.parameters_total - spec.parameters_active)
    why = messages(analyse(megatron(everything), device=H100, model=MIXTRAL))["claimed_mfu_differs"]
    assert "as the convention palm does, all experts instead of the active ones" in why


def test_tflops_are_compared_without_a_peak(analyse: Callable[..., Analysis]) -> None:
    found = analyse(megatron(per_token(LLAMA, "palm")))
    assert found.efficiency.mfu.value is None
    assert "as the convention palm does" in messages(found)["claimed_mfu_differs"]


def test_the_peak_behind_a_lone_mfu_is_found(analyse: Callable[..., Analysis]) -> None:
    flops = per_token(LLAMA, "palm") * RATE
    own = messages(analyse(nanogpt(flops / 312e12), device=A100))["claimed_mfu_differs"]
    assert "as the convention palm does" in own
    assert "divides" not in own
    other = messages(analyse(nanogpt(flops / 312e12), device=H100))["claimed_mfu_differs"]
    assert "it divides by 312 TFLOP/s, the dense peak is 989.4: it takes an A100's" in other
    sparse = messages(analyse(nanogpt(flops / 838.9e12), device="Data Center GPU Max 1550 (one tile)"))
    assert "it takes the rate with structured sparsity" in sparse["claimed_mfu_differs"]
    none = messages(analyse(nanogpt(flops / 71e12), device=H100))["claimed_mfu_differs"]
    assert "no known pair of them fits" in none


def test_without_a_rate_nothing_is_guessed(analyse: Callable[..., Analysis]) -> None:
    found = analyse(nanogpt(0.4), device=H100, devices=None)
    assert found.efficiency.mfu.value is None
    assert "--devices" in messages(found)["no_counts"]
    assert "claimed_mfu_differs" not in messages(found)
    vision = {"model_type": "vit", "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3}
    vision |= {"intermediate_size": 768, "image_size": 224, "patch_size": 16}
    assert "takes no tokens" in messages(analyse(nanogpt(0.4), device=H100, model=vision))["no_flops"]


@pytest.mark.parametrize(("field", "value"), [("devices", 0), ("sequence_length", -1), ("global_batch", 0)])
def test_counts_below_one_are_refused(field: str, value: int) -> None:
    with pytest.raises(EffprofError, match="not a number of"):
        Given(**{field: value})  # type: ignore[arg-type]


def test_the_commands_take_the_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    logs = [tmp_path / name for name in ("a", "b")]
    for log in logs:
        log.write_text(megatron(per_token(LLAMA, "palm")))
    facts = ["--model", str(config), "--device", "H100 SXM", "--seq", str(LENGTH), "--dtype", "bf16"]
    assert main(["analyze", str(logs[0]), "--json", "--devices", str(DEVICES), *facts]) == 0
    share = json.loads(capsys.readouterr().out)["efficiency"]["mfu"]
    assert share["value"] == pytest.approx(per_token(LLAMA, "exact") * RATE / 989.4e12)
    each = ["--devices", "8", "--devices", "16"]
    assert main(["compare", *map(str, logs), "--json", *each, *facts]) == 0
    metrics = {metric["name"]: metric for metric in json.loads(capsys.readouterr().out)["metrics"]}
    assert metrics["tokens_per_s_per_device"]["values"] == [pytest.approx(RATE), pytest.approx(RATE / 2)]
    assert metrics["mfu"]["values"][0] == pytest.approx(share["value"])
    assert main(["compare", *map(str, logs), *each, "--devices", "32"]) == 2
    assert "once for all, or once per log" in capsys.readouterr().err
    assert main(["analyze", str(logs[0]), "--dtype", "int5"]) == 2
    assert "give one of bf16" in capsys.readouterr().err
