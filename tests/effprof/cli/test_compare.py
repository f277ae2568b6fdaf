"""`effprof compare` as people and scripts run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effprof.cli.main import main


@pytest.fixture
def pair(tmp_path: Path, hand_made: Any) -> list[str]:
    paths = []
    for name, seconds in (("a", 0.1), ("b", 0.2)):
        run = hand_made(tmp_path / name, name).record(config={"compile": name == "a"})
        paths.append(str(run.rank([run.step(seconds)] * 40).path))
    return paths


def test_prints_a_table(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *pair]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "config.compile" in out
    assert "×0.500 (0.500 … 0.500)" in out


def test_prints_json(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--json", *pair]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "effprof.compare/1"
    assert document["differences"] == [{"key": "config.compile", "values": [True, False]}]
    [rate] = [metric for metric in document["metrics"] if metric["name"] == "tokens_per_s"]
    assert rate["values"] == pytest.approx([400, 200])
    assert rate["ratios"][1]["value"] == pytest.approx(0.5)
    assert rate["ratios"][1]["is_different"] is True


def test_markdown_to_a_file(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--markdown", "-o", str(tmp_path / "c.md"), *pair, pair[0]]) == 0
    assert "no significant difference" in (tmp_path / "c.md").read_text()


def test_one_run_is_refused(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", pair[0]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "effprof: compare needs at least two runs\ngive two or more run directories\n"


def test_a_missing_run_is_refused(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *pair, "/no/such/run"]) == 2
    assert "/no/such/run: no such file or directory" in capsys.readouterr().err
