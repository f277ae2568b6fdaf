"""`effprof flops` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from effprof.cli.flops import command
from effprof.errors import EffprofError

CONFIGS = Path(__file__).parents[2] / "data" / "configs"


def test_json_has_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    command(str(CONFIGS / "qwen3-30b-a3b.json"), seq=8192, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "effprof.flops/1"
    assert answer["params"] == {"total": 30_532_122_624, "active": 3_353_032_704}
    assert set(answer["flops_per_token"]) == {"exact", "megatron", "palm", "6n"}
    assert answer["flops_per_sample"] == answer["flops_per_token"]["exact"] * 8192
    assert sum(answer["breakdown"].values()) == pytest.approx(answer["flops_per_sample"])


def test_vision_json_has_null_per_token(capsys: pytest.CaptureFixture[str]) -> None:
    command(str(CONFIGS / "vit-base-16.json"), image_size=384, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["flops_per_token"] is None
    assert answer["positions_per_sample"] == 577
    assert answer["flops_per_sample"] > 0


def test_table_shows_all_conventions_and_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    command(str(CONFIGS / "mixtral-8x7b.json"), seq=4096)
    text = capsys.readouterr().out
    assert "46.70B parameters · 12.88B active (2 of 8 experts) · 4,096 tokens" in text
    for word in ("exact", "megatron", "palm", "6n", "experts", "router", "attention over pairs", "head", "100.0%"):
        assert word in text


def test_encoder_decoder_table(capsys: pytest.CaptureFixture[str]) -> None:
    command(str(CONFIGS / "t5-base.json"), seq=512, target_seq=114)
    assert "512 source and 114 target tokens" in capsys.readouterr().out


def test_errors_reach_the_caller(tmp_path: Path) -> None:
    with pytest.raises(EffprofError, match="no such file"):
        command(str(tmp_path / "nothing.json"), seq=8)
    with pytest.raises(EffprofError, match="Pass --seq"):
        command(str(CONFIGS / "gpt2.json"))


def test_answers_without_torch() -> None:
    script = (
        "import sys; from effprof.cli.flops import command; "
        f"command({str(CONFIGS / 'deepseek-v3.json')!r}, seq=4096); "
        "print(sorted({'torch', 'numpy', 'transformers', 'polars', 'rich'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("[]")
    assert "671.03B parameters · 37.55B active (8 of 256 experts)" in run.stdout
