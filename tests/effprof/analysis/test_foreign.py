"""Other tools' logs: what they allow is filled, the rest is null, claims stand beside what is recomputed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effprof.analysis.foreign import Given, examine_foreign
from effprof.analysis.model import Analysis
from effprof.cli.main import main

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1000,
}


def megatron(steps: int = 20, seconds: float = 0.5, tflops: float = 100.0) -> str:
    head = "  world_size ......... 8\n  seq_length ......... 2048\n  params_dtype ....... torch.bfloat16\n"
    lines = [
        f" iteration {step:8d}/     500 | consumed samples: {step * 64:12d} | elapsed time per iteration (ms): "
        f"{1000 * seconds * (9 if step == 1 else 1):.1f} | throughput per GPU (TFLOP/s/GPU): {tflops} | "
        f"global batch size:    64 | lm loss: {9 - 0.1 * step:E} | number of nan iterations:   0 |"
        for step in range(1, steps + 1)
    ]
    return head + "\n".join(lines) + "\n"


def analysis(path: Path, text: str, **given: Any) -> Analysis:
    path.write_text(text)
    return examine_foreign(str(path), Given(**given)).analysis


def test_rates_follow_from_what_is_printed(tmp_path: Path) -> None:
    found = analysis(tmp_path / "any-name", megatron())
    assert found.source is not None
    assert (found.source.format, found.source.steps) == ("megatron-lm", 20)
    assert found.source.claimed.tflops_per_device == 100.0
    assert found.source.claimed.mfu is None
    efficiency = found.efficiency
    assert efficiency.step_time_s.median == pytest.approx(0.5)  # the first step, nine times as long, is warm-up
    assert efficiency.tokens_per_s.median == pytest.approx(64 * 2048 / 0.5)
    assert efficiency.tokens_per_s_per_device.median == pytest.approx(64 * 2048 / 0.5 / 8)
    assert efficiency.samples_per_s.median == pytest.approx(128)
    assert efficiency.mfu.value is None
    assert found.account.wall_s == pytest.approx(sum(found.account.lines.values()))


def test_mfu_is_recomputed_beside_the_claim(tmp_path: Path) -> None:
    from effprof.workload.architecture import from_hf_config
    from effprof.workload.flops import counts_for, flops_model

    found = analysis(tmp_path / "log", megatron(), model=LLAMA, device="NVIDIA H100 80GB HBM3")
    spec = from_hf_config(LLAMA)
    per_sequence = flops_model(spec).evaluate(counts_for(spec, 1, 2048))
    assert per_sequence is not None
    share = found.efficiency.mfu
    assert share.value == pytest.approx(per_sequence * 128 / 8 / 989.4e12, rel=1e-3)
    assert share.dtype == "bf16"
    assert share.value is not None
    assert found.efficiency.conventions.palm.mfu is not None
    assert found.efficiency.conventions.palm.mfu > share.value
    codes = {warning.code: warning.message for warning in found.warnings}
    assert "exact FLOPs" in codes["claimed_mfu_differs"]


def test_what_the_log_does_not_say_is_null_and_said(tmp_path: Path) -> None:
    lines = "\n".join(
        f"step:{n}/100 train_loss:{5 - n / 50:.4f} train_time:{250 * n}ms step_avg:250.00ms" for n in range(1, 60)
    )
    found = analysis(tmp_path / "log", lines)
    assert found.source is not None
    assert found.source.format == "modded-nanogpt"
    assert found.efficiency.step_time_s.median == pytest.approx(0.25)
    assert found.efficiency.tokens_per_s.median is None
    assert found.efficiency.tokens_per_s_per_device.median is None
    messages = {warning.code: warning.message for warning in found.warnings}
    assert "tokens_per_s" in messages["not_in_log"]
    assert "devices_unknown" in messages


def test_a_running_average_is_a_claim_and_no_step(tmp_path: Path) -> None:
    """Rates fall slowly in the average; the stamps show the stall at once."""
    blocks = []
    for step in range(1, 31):
        second = 12 * step if step < 5 else 48 + 28 * (step - 4)
        blocks.append(
            f"[2024-04-17 09:{second // 60:02d}:{second % 60:02d}] INFO     "
            f"[olmo.train:816, rank=0] [step={step}/739328]\n"
            f"    train/CrossEntropyLoss={11 - step / 20:.3f}\n    throughput/total_tokens={step * 4_194_304:,}\n"
            "    throughput/device/tokens_per_second=40,000\n"
        )
    found = analysis(tmp_path / "log", "".join(blocks))
    assert found.source is not None
    assert found.source.claimed.tokens_per_s == 40_000
    assert found.efficiency.step_time_s.median == pytest.approx(28)
    assert found.efficiency.tokens_per_s.median == pytest.approx(4_194_304 / 28)
    assert found.efficiency.tokens_per_s_per_device.median is None


def test_blocks_of_unknown_many_steps_give_no_step_time(tmp_path: Path) -> None:
    def entry(key: str, seconds: int, value: object = None) -> str:
        return ":::MLLOG " + json.dumps({"key": key, "value": value, "time_ms": 1000 * seconds, "metadata": {}}) + "\n"

    head = entry("global_batch_size", 0, 2048) + entry("max_sequence_length", 0, 2048)
    blocks = [entry("block_start", 300 * n) + entry("block_stop", 300 * n + 280) for n in range(8)]
    efficiency = analysis(tmp_path / "log", head + "".join(blocks)).efficiency
    assert efficiency.step_time_s.median is None
    assert efficiency.tokens_per_s.median is None
    assert efficiency.tokens_per_step == 2048 * 2048


def test_a_restart_s_later_steps_count(tmp_path: Path) -> None:
    found = analysis(
        tmp_path / "log", megatron(20, 0.5) + megatron(25, 0.4).replace("iteration        1/", "iteration       11/")
    )
    assert found.source is not None
    assert found.efficiency.step_time_s.median == pytest.approx(0.4)
    assert any(warning.code == "repeated_steps" for warning in found.warnings)


def test_reports_name_the_tool_and_its_claim(tmp_path: Path) -> None:
    from effprof.reports import markdown, terminal

    found = analysis(tmp_path / "log", megatron().replace("world_size", "other_size"))
    for text in (terminal.render(found), markdown.render(found)):
        assert "log of megatron-lm, 20 records, which claims: 100 TFLOP/s per device" in " ".join(text.split())
        assert "unknown number of unknown device" in text


def test_a_comparison_has_no_rate_per_device_where_devices_are_unknown(tmp_path: Path) -> None:
    from effprof.analysis.compare import compare

    examined = []
    for name, text in (("a", megatron()), ("b", megatron().replace("world_size", "other_size"))):
        (tmp_path / name).write_text(text)
        examined.append(examine_foreign(str(tmp_path / name)))
    rates = {metric.name: metric.values for metric in compare(examined).metrics}
    assert rates["samples_per_s_per_device"] == [pytest.approx(16), None]
    assert rates["samples_per_s"] == [pytest.approx(128), pytest.approx(128)]


def test_a_directory_s_folders_are_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("job-1", "job-2"):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        (tmp_path / "jobs" / name / "out").write_text(megatron())
    (tmp_path / "jobs" / "job-1" / "notes").write_text("nothing here")
    assert main(["analyze", str(tmp_path / "jobs"), "--json"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert "notes: not recognised" in printed.err
    (tmp_path / "other").write_text(megatron())
    assert main(["compare", str(tmp_path / "jobs"), str(tmp_path / "other"), "--json"]) == 0
    assert "holds 2 logs; this is the first, job-1/out" in capsys.readouterr().err


def test_a_folder_s_file_that_only_looks_like_a_log_fails_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shapes.md").write_text('| LLaMA-Factory | `{"current_steps": n, "elapsed_time": "h:mm:ss"}` |\n')
    assert main(["analyze", str(tmp_path)]) == 2
    (tmp_path / "train.log").write_text(megatron())
    assert main(["analyze", str(tmp_path), "--json"]) == 0
    assert "shapes.md" in capsys.readouterr().err


def test_the_commands_take_other_tools_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.out").write_text(megatron(20, 0.5))
    (folder / "b.out").write_text(megatron(20, 0.4))
    (folder / "notes.txt").write_text("nothing here")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    assert main(["analyze", str(folder), "--json", "--model", str(config), "--device", "H100 SXM"]) == 0
    printed = capsys.readouterr()
    documents = [json.loads(line) for line in printed.out.splitlines()]
    assert [document["source"]["steps"] for document in documents] == [20, 20]
    assert all(document["efficiency"]["mfu"]["value"] > 0 for document in documents)
    assert "notes.txt: not recognised" in printed.err
    assert main(["compare", str(folder / "a.out"), str(folder / "b.out"), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    rates = next(metric for metric in compared["metrics"] if metric["name"] == "tokens_per_s")
    assert rates["ratios"][1]["value"] == pytest.approx(1.25)
    assert main(["analyze", str(folder / "a.out"), "--device", "abacus"]) == 2
    assert main(["analyze", str(folder / "notes.txt")]) == 2
    assert "not an effprof log" in capsys.readouterr().err
