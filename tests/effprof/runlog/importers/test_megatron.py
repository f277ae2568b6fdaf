"""Megatron-LM's line through the years and its forks, and the model that its arguments describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from effprof.analysis.foreign import Given, examine_foreign
from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.sniff import read_foreign

# One step of each dialect: what follows `iteration <n>/ 100 |`, then step time, TFLOP/s and tokens/s of a device.
DIALECTS = {
    "2021": (
        " elapsed time per iteration (ms): 2000.0 | learning rate: 1.5E-04 | global batch size: 64 | "
        "lm loss: 9.5E+00 | loss scale: 1.0 | number of nan iterations: 0 |",
        (2.0, None, None),
    ),
    "core": (
        " consumed samples: 640 | elapsed time per iteration (ms): 2000.0 | throughput per GPU (TFLOP/s/GPU): 412.3 | "
        "learning rate: 1.2E-05 | global batch size: 64 | lm loss: 9.5E+00 | load_balancing_loss: 1.1E+00 |",
        (2.0, 412.3, None),
    ),
    "bloom": (
        " consumed samples: 640 | elapsed time per iteration (s): 2.00 | learning rate: 6E-05 | "
        "global batch size: 64 | lm loss: 9.5E+00 | grad norm: nan | samples per second: 32.0 | TFLOPs: 149.02 |",
        (2.0, 149.02, None),
    ),
    "primus": (
        " consumed samples: 640 | elapsed time per iteration (ms): 2000.0/2100.5 | "
        "hip mem usage/free/total/usage_ratio: 140.1GB/51.8GB/191.9GB/73% | "
        "throughput per GPU (TFLOP/s/GPU): 578.8/560.1 | tokens per GPU (tokens/s/GPU): 11250.9/11000.1 | "
        "global batch size: 64 | lm loss: 9.5E+00 |",
        (2.0, 578.8, 11250.9),
    ),
    "neox": (
        " elapsed time per iteration (ms): 2000.0 | learning rate: 9.6E-05 | "
        "approx flops per GPU: 117.5TFLOPS | lm_loss: 9.5E+00 | number of skipped iterations: 0 |",
        (2.0, 117.5, None),
    ),
    "argonne": (
        " consumed_samples= 640 | consumed_tokens= 1310720 | elapsed_time_per_iteration_ms=2000.0 | "
        "global_batch_size= 64 | lm loss=9.5 | samples_per_second=32.0 | "
        "tokens_per_gpu_per_second_tgs=4797.255 | TFLOPs=53.66 |",
        (2.0, 53.66, 4797.255),
    ),
}
ARGUMENTS = {
    "world_size": 8,
    "seq_length": 2048,
    "num_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "ffn_hidden_size": 512,
    "padded_vocab_size": 1024,
    "params_dtype": "torch.bfloat16",
}


def dump(**arguments: object) -> str:
    return "".join(f"  {name} {'.' * (48 - len(name))} {value}\n" for name, value in (ARGUMENTS | arguments).items())


def lines(dialect: str, steps: int = 12) -> str:
    mark = "=" if dialect == "argonne" else " "
    return "".join(f" iteration{mark}{step:8}/ 100 |{DIALECTS[dialect][0]}\n" for step in range(1, steps + 1))


def read(tmp_path: Path, text: str) -> ForeignLog:
    path = tmp_path / "log"
    path.write_text(text)
    return read_foreign(str(path))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_line_of_each_dialect(tmp_path: Path, dialect: str) -> None:
    log = read(tmp_path, lines(dialect))
    assert (log.format, log.records) == ("megatron-lm", 12)
    names = ("step_time_s", "tflops_per_device", "tokens_per_s_per_device")
    found = [float(log.columns[name][0]) if log.has(name) else None for name in names]
    assert found == [pytest.approx(value) if value is not None else None for value in DIALECTS[dialect][1]]
    assert log.columns["loss"][0] == 9.5


def test_arguments_are_found_in_each_way_of_printing_them(tmp_path: Path) -> None:
    neox = "  num_layers ...................... 44..........................updated\n"
    neox += "  seq_length ...................... 2048........................default\n"
    log = read(tmp_path, neox + "using world size: 24, data-parallel-size: 3\n" + lines("neox"))
    assert (log.facts["layers"], log.facts["sequence_length"]) == (44, 2048)
    assert (log.facts["world_size"], log.facts["data_parallel_size"]) == (24, 3)
    log = read(tmp_path, "[default0]:" + dump(world_size=16).replace("\n", "\n[default0]:") + "\n" + lines("bloom"))
    assert log.facts["world_size"] == 16


@pytest.mark.parametrize(
    ("arguments", "family"),
    [
        ({}, "gpt2"),
        ({"swiglu": True}, "llama"),
        ({"swiglu": True, "num_experts": 8, "moe_router_topk": 2, "moe_ffn_hidden_size": 128}, "mixtral"),
        ({"swiglu": True, "multi_latent_attention": True}, None),
        ({"num_experts": 8, "moe_router_topk": 2}, None),
        ({"padded_vocab_size": None}, None),
    ],
)
def test_the_model_of_the_arguments(tmp_path: Path, arguments: dict[str, object], family: str | None) -> None:
    model = read(tmp_path, dump(**arguments) + lines("core")).facts.get("model") or {}
    assert model.get("model_type") == family
    if family == "mixtral":
        assert (model["num_local_experts"], model["num_experts_per_tok"], model["intermediate_size"]) == (8, 2, 128)


def test_grouped_queries_only_count_where_they_are_on(tmp_path: Path) -> None:
    for is_on, heads in ((True, 2), (False, 8)):
        text = dump(swiglu=True, num_query_groups=2, group_query_attention=is_on) + lines("core")
        assert read(tmp_path, text).facts["model"]["num_key_value_heads"] == heads


def test_mfu_needs_no_config_where_the_arguments_tell_the_model(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = dump(swiglu=True, untie_embeddings_and_output_weights=True) + lines("core")
    path.write_text(" > padded vocab (size: 1000) with 24 dummy tokens (new size: 1024)\n" + text)
    analysis = examine_foreign(str(path), Given(device="NVIDIA H100 80GB HBM3")).analysis
    config = {
        "model_type": "llama",
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 8,
        "intermediate_size": 512,
        "vocab_size": 1000,
        "tie_word_embeddings": False,
    }
    given = examine_foreign(str(path), Given(model=config, device="NVIDIA H100 80GB HBM3")).analysis
    assert analysis.efficiency.mfu.value is not None
    assert analysis.efficiency.mfu.value == pytest.approx(given.efficiency.mfu.value)
    assert "before padding" in next(w.message for w in analysis.warnings if w.code == "model_from_arguments")


def test_a_rate_that_contradicts_batch_and_time_is_not_taken(tmp_path: Path) -> None:
    """Megatron-DeepSpeed once divided by milliseconds."""
    path = tmp_path / "log"
    path.write_text(lines("bloom").replace("samples per second: 32.0", "samples per second: 0.032"))
    analysis = examine_foreign(str(path)).analysis
    assert analysis.efficiency.samples_per_s.median == pytest.approx(32)
    assert any("contradicts" in warning.message for warning in analysis.warnings)


def test_deepspeed_s_timer_between_the_lines_does_not_take_the_log(tmp_path: Path) -> None:
    timer = (
        "[2025-11-10 09:43:36,149] [INFO] [timer.py:264:stop] epoch=0/micro_step=5/global_step=5, "
        "RunningAvgSamplesPerSec=2443.9, CurrSamplesPerSec=2553.4, MemAllocated=3.71GB, MaxMemAllocated=39.0GB\n"
    )
    text = "".join(line + "\n" + timer for line in lines("argonne").splitlines())
    assert read(tmp_path, text).format == "megatron-lm"


def test_the_table_of_nvidia_smi_names_the_device(tmp_path: Path) -> None:
    table = (
        "|   0  Tesla V100-SXM2...  Off  | 00000000:1A:00.0 Off |                    0 |\n"
        "| N/A   46C    P0    44W / 300W |      0MiB / 32510MiB |      0%      Default |\n"
    )
    path = tmp_path / "log"
    path.write_text(table + dump(params_dtype="torch.float16") + lines("2021"))
    share = examine_foreign(str(path)).analysis.efficiency.mfu
    assert share.peak_flops_per_s == pytest.approx(125e12)
    assert share.value is not None
