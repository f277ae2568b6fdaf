"""Published figures of full-size models, from their config.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from effprof.workload.architecture import from_hf_config
from effprof.workload.flops import FlopsReport, report

CONFIGS = Path(__file__).parents[2] / "data" / "configs"


def config(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return values


def of(name: str, seq: int | None = None, target: int | None = None) -> FlopsReport:
    return report(from_hf_config(config(name)), seq, target)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("gpt2", 124_439_808, 124_439_808),
        ("llama-3-8b", 8_030_261_248, 8_030_261_248),
        ("llama-3-70b", 70_553_706_496, 70_553_706_496),
        ("mistral-7b", 7_241_732_096, 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704, 12_879_925_248),
        ("qwen3-8b", 8_190_735_360, 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624, 3_353_032_704),
        ("deepseek-v3", 671_026_404_352, 37_552_282_624),
        ("olmoe-1b-7b", 6_919_161_856, 1_282_017_280),
        ("gemma-2b", 2_506_172_416, 2_506_172_416),
        ("bert-base", 109_514_298, 109_514_298),
        ("vit-base-16", 86_567_656, 86_567_656),
        ("t5-base", 222_903_552, 222_903_552),
    ],
)
def test_parameters_of_published_models(name: str, total: int, active: int) -> None:
    architecture = from_hf_config(config(name))
    assert (architecture.parameters_total, architecture.parameters_active) == (total, active)


def test_qwen3_30b_in_our_conventions_and_torchtitans() -> None:
    per_token = of("qwen3-30b-a3b", 8192).flops_per_token
    assert per_token is not None
    assert per_token["exact"] / 1e9 == pytest.approx(27.9, abs=0.05)
    assert per_token["palm"] / 1e9 == pytest.approx(37.58, abs=0.005)
    # torchtitan: 6 (active parameters - embedding) + 12 · layers · heads · head size · T, so palm with the norms in N
    active = from_hf_config(config("qwen3-30b-a3b")).parameters_active
    torchtitan = 6 * (active - 151936 * 2048) + 12 * 48 * 32 * 128 * 8192
    assert torchtitan / 1e9 == pytest.approx(37.58, abs=0.005)
    assert per_token["palm"] == pytest.approx(torchtitan, rel=1e-4)


def test_llama_3_8b() -> None:
    per_token = of("llama-3-8b", 8192).flops_per_token
    assert per_token is not None
    assert per_token["exact"] / 1e9 == pytest.approx(51.5, abs=0.05)
    attention = 12 * 32 * 4096 * 8192
    matrices = 8_030_261_248 - 128256 * 4096 - 65 * 4096
    assert per_token["palm"] == 6 * matrices + attention
    assert per_token["megatron"] == 6 * matrices + attention / 2
    assert per_token["6n"] == 6 * 8_030_261_248


def test_deepseek_v3_is_37_of_671_billion() -> None:
    architecture = from_hf_config(config("deepseek-v3"))
    assert architecture.parameters_total / 1e9 == pytest.approx(671.0, abs=0.1)
    assert architecture.parameters_active / 1e9 == pytest.approx(37.6, abs=0.1)
    per_token = of("deepseek-v3", 4096).flops_per_token
    assert per_token is not None
    attention = 6 * 61 * 128 * (192 + 128) * 4097 / 2
    matrices = 37_552_282_624 - 129280 * 7168 - (61 * (2 * 7168 + 1536 + 512) + 7168)
    assert per_token["exact"] == 6 * matrices + attention


def test_a_window_caps_the_pairs_in_exact_only() -> None:
    per_token = of("mistral-7b", 32768).flops_per_token
    assert per_token is not None
    pairs = 4096 * 4097 / 2 + (32768 - 4096) * 4096
    attention = 12 * 32 * 4096
    assert per_token["palm"] - per_token["exact"] == pytest.approx(attention * (32768 - pairs / 32768))
    assert per_token["palm"] - per_token["megatron"] == attention * 32768 / 2


def test_bidirectional_conventions_coincide() -> None:
    per_token = of("bert-base", 512).flops_per_token
    assert per_token is not None
    assert per_token["exact"] == per_token["megatron"] == per_token["palm"]


def test_vision_has_no_tokens() -> None:
    answer = of("vit-base-16")
    assert answer.flops_per_token is None
    # 197 positions; the patch embedding at 2 × forward, the rest at 3 ×; 17.6 GFLOP forward is the published figure
    blocks = 197 * 12 * (4 * 768 * 768 + 2 * 768 * 3072) * 2 + 12 * 2 * 197**2 * 1536
    patches = 196 * 768 * 768 * 2
    assert answer.flops_per_sample == 3 * (blocks + 768 * 1000 * 2) + 2 * patches
    assert (blocks + patches) / 2e9 == pytest.approx(17.58, abs=0.02)
    assert of("vit-base-16", 512).flops_per_sample == answer.flops_per_sample


def test_encoder_decoder_tokens_are_source_and_target() -> None:
    answer = of("t5-base", 512, 114)
    assert answer.flops_per_token is not None
    assert answer.flops_per_sample == pytest.approx(answer.flops_per_token["exact"] * (512 + 114))
    encoder = 512 * 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    decoder = 114 * (12 * (6 * 768 * 768 + 2 * 768 * 3072) + 768 * 32128)
    cross = 512 * 12 * 2 * 768 * 768
    pairs = 12 * 2 * 768 * (512**2 + 114 * 115 / 2 + 512 * 114)
    assert answer.flops_per_sample == pytest.approx(6 * (encoder + decoder + cross + pairs), rel=1e-12)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.json")))
def test_breakdown_adds_up(name: str) -> None:
    answer = of(name, 1024)
    assert math.fsum(answer.breakdown.values()) == pytest.approx(answer.flops_per_sample, rel=1e-12)
