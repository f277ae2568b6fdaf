"""Logs that people published: each is recognised, and its figures are those that its own source states."""

from __future__ import annotations

from pathlib import Path

import pytest

from effprof.analysis.foreign import Given, examine_foreign
from effprof.analysis.model import Analysis

SHARED = Path(__file__).resolve().parents[4].parent / "shared" / "logs"
# format, step records, step time in s, tokens/s of a device and of the job, claimed TFLOP/s of a device
EXPECTED: dict[str, tuple[str, int, float | None, float | None, float | None, float | None]] = {
    "megatron_bigscience_18b_v100x16.out": ("megatron-lm", 20, 1.3806, 185.43, 2966.8, None),
    "megatron_bigscience_v100x256_pp64.out": ("megatron-lm", 6, 6.7153, 2.3826, 609.95, None),
    "megatron_deepspeed_bigscience_52b_v100x64_ds_on.out": ("megatron-lm", 49, 137.10, 119.50, 7648.1, None),
    "megatron_deepspeed_104b_lossscale_drop.log": ("megatron-lm", 12, 422.9, None, 9917.1, 32.03),
    "megatron_deepspeed_bloom176b_a100x384_spike.log": ("megatron-lm", 12, 106.33, None, 39446, 147.485),
    "megatron_deepspeed_argonne_aurora_2b_xpu3072.log": ("megatron-lm", 7, 3.4115, 4802.7, 14753904, 53.66),
    "megatron_dense_02b_x8.log": ("megatron-lm", 10, 0.2297, None, None, 84.45),
    "megatron_moe_64experts_4b_x8.log": ("megatron-lm", 15, 0.6255, None, None, 30.9),
    "mindspeed_llm_qwen3_8b_fsdp2_npu8.log": ("megatron-lm", 3, 1.8249, None, 17972, None),
    "torchtitan_aurora_xpu24.log": ("torchtitan", 105, 0.61752, 6633, 159192, 61.56),
    "maxtext_deepseek2_16b_v5p4.log": ("maxtext", 10, 5.6685, 8671.0, 34684, 134.8965),
    "internevo_7b_a100x8.log": ("internevo", 6, 3.9745, 4182.5, 32978, 185.556),
    "build_nanogpt_v100_fp32.txt": ("nanogpt", 440, 4.8123, None, 108948, None),
    "olmo_1b_h100x16_ib.log": ("olmo", 10, 6.0, None, 699051, None),
    "olmo_1b_h100x16_blobfuse_data_bound.log": ("olmo", 10, 28.0, None, 149797, None),
    "xtuner_v1_sft_8ranks.log": ("xtuner", 2, 0.8948, 4533.1, 36264.8, None),
}


def examined(name: str, **given: str) -> Analysis:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here: other people's logs lie beside the repository only")
    return examine_foreign(str(path), Given(**given)).analysis  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_log_gives_the_figures_of_its_source(name: str) -> None:
    form, records, seconds, device_rate, rate, tflops = EXPECTED[name]
    found = examined(name)
    assert found.source is not None
    assert (found.source.format, found.source.steps) == (form, records)
    efficiency = found.efficiency
    figures = [
        efficiency.step_time_s.median,
        efficiency.tokens_per_s_per_device.median,
        efficiency.tokens_per_s.median,
        found.source.claimed.tflops_per_device,
    ]
    assert figures == [
        None if value is None else pytest.approx(value, rel=1e-3) for value in (seconds, device_rate, rate, tflops)
    ]
    assert efficiency.mfu.value is None or found.run.model
    assert found.account.wall_s == pytest.approx(sum(found.account.lines.values()))


def test_a_bigscience_log_alone_is_enough_for_mfu() -> None:
    """Model, sequence length and devices stand in its arguments, the V100 in nvidia-smi's table."""
    share = examined("megatron_bigscience_18b_v100x16.out").efficiency.mfu
    assert share.value == pytest.approx(0.1663, rel=1e-3)
    assert (share.dtype, share.peak_flops_per_s) == ("fp16", 125e12)


def test_the_claim_of_an_unknown_chip_is_not_taken_for_a_step_s() -> None:
    """This tool's MFU is -100 % until it is warm."""
    found = examined("wordplay_polaris_a100x8_mfu_neg.log")
    assert found.source is not None
    assert found.source.claimed.mfu == pytest.approx(0.044, rel=0.02)
