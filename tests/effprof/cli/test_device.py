"""`effprof device`: the JSON that others read, refusals with exit code 2, and this very machine."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from effprof.cli.main import main
from effprof.hardware import ceiling


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["device", *arguments, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_chip_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    report = answer(capsys, "--name", "NVIDIA H100 NVL", "--memory-gb", "94")
    assert report["schema"] == "effprof.device/1"
    assert report["name"] == "H100 NVL"
    assert report["vendor"] == "NVIDIA"
    assert report["peak_tflops"]["bf16"] == 835.5
    assert report["peak_tflops"]["fp8"] == 1670.5
    assert report["memory_bytes"] == 94_000_000_000
    assert report["memory_bandwidth_bytes_per_s"] == pytest.approx(3.938e12)
    assert report["sources"] == ["https://www.nvidia.com/en-us/data-center/h100/"]
    assert report["warnings"] == []


def test_a_slice_says_that_it_is_scaled(capsys: pytest.CaptureFixture[str]) -> None:
    report = answer(capsys, "--name", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "--compute-units", "60")
    assert report["peak_tflops"]["bf16"] == pytest.approx(989.4 * 60 / 132)
    assert "slice" in report["warnings"][0]["message"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--name", "H100"], ["H100 SXM5 80GB", "H100 PCIe", "H100 NVL", "--memory-gb"]),
        (["--name", "NVIDIA GeForce RTX 4090 Laptop GPU"], ["laptop", "GeForce RTX 4090", "--peak-tflops"]),
        (["--name", "Warp Core 9000"], ["Warp Core 9000", "peak_tflops="]),
        (["--name", "NVIDIA H100 PCIe", "--memory-gb", "94"], ["94 GB", "H100 PCIe (80 GB"]),
        (["--name", "NVIDIA H100 80GB HBM3 MIG 9g.90gb"], ["slice", "--compute-units"]),
        (["--memory-gb", "80"], ["--memory-gb", "--name"]),
        (["--name", "H100", "--memory-gb", "-3"], ["--memory-gb", "positive"]),
        (["--name", "H100 NVL", "--measure"], ["--measure"]),
    ],
)
def test_refusals_say_what_to_do(capsys: pytest.CaptureFixture[str], arguments: list[str], says: list[str]) -> None:
    assert main(["device", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 2
    for words in says:
        assert words in captured.err


def test_this_machine_without_measuring_imports_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFPROF_CEILINGS", "off")
    code = (
        "import sys; from effprof.cli.main import main; code = main(['device', '--json']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["name"]
    assert report["memory_bytes"] > 0
    assert set(report) >= {"schema", "vendor", "peak_tflops", "memory_bandwidth_bytes_per_s", "sources", "devices"}
    if report["devices"][0]["type"] == "cpu":
        # not measured is null with a reason, never zero or a guess
        assert set(report["peak_tflops"].values()) == {None}
        assert "--measure" in report["warnings"][0]["message"]


def test_this_machine_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "CPU_BUDGET_S", 0.3)
    monkeypatch.setattr(ceiling, "_cache", {})
    report = answer(capsys, "--measure")
    fp32 = report["measured"]["gemm"]["fp32"]
    assert fp32["tflops"] > 0
    assert len(fp32["shape"]) == 3
    assert report["measured"]["copy_bytes_per_s"] > 1e8
    if report["devices"][0]["type"] == "cpu":
        assert report["kind"] == "measured_ceiling"
        assert report["peak_tflops"]["fp32"] == fp32["tflops"]
        assert "measured here" in report["sources"][0]


def test_the_table_shows_peaks_sources_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--name", "L40"]) == 0
    text = capsys.readouterr().out
    assert "L40  ·  NVIDIA" in text
    assert "181.05" in text
    assert "datasheet: https://images.nvidia.com" in text
    assert "864 GB/s" in text


def test_a_chip_without_published_peaks_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--name", "PPU-ZW810E"]) == 0
    text = capsys.readouterr().out
    assert "no dense peak" in text
    assert "--peak-tflops" in text
