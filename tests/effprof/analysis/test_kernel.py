"""Traces through `effprof analyze`: the documents, the roofline, the complaints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from traces import annotation, collective, copy, document, kernel, launch, operator, write
from typer.testing import CliRunner

from effprof.analysis.kernel import analyze_traces, to_account
from effprof.analysis.model import ACCOUNT_LINES
from effprof.cli.main import app
from effprof.errors import EffprofError
from effprof.reports import json as json_report
from effprof.reports import markdown, terminal

GEMM = "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn"
A100 = {"id": 0, "name": "NVIDIA A100-SXM4-80GB", "totalGlobalMem": 85_000_000_000, "numSms": 108}
KEYS = {"window_s", "compute_s", "communication_s", "communication_exposed_s", "memory_copy_s",
        "memory_copy_exposed_s", "idle_s", "kernels"}  # fmt: skip


def events(late: float = 0.0) -> list[dict[str, Any]]:
    return [
        annotation("ProfilerStep#2", 0, 1000),
        operator("aten::mm", 0, 30, [[4096, 4096], [4096, 4096]], ["c10::BFloat16"] * 2),
        launch(1, 5),
        kernel(GEMM, 50, 600, correlation=1),
        launch(2, 700, thread=9),
        collective("allreduce", 720 + late, 180 - late, sequence=1, correlation=2),
        copy(900, 50),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for rank in (0, 1):
        write(tmp_path / f"r{rank}.json.gz", document(events(40.0 * rank), rank=rank, deviceProperties=[A100]))
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["analyze", *arguments])


def test_json_of_a_folder(folder: Path) -> None:
    done = run(str(folder), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["schema"] == "effprof.analysis/1"
    assert set(found["kernel_account"]) == {"0", "1"}
    for account in found["kernel_account"].values():
        assert set(account) >= KEYS
        parts = ("compute_s", "communication_exposed_s", "memory_copy_exposed_s", "idle_s")
        assert sum(account[part] for part in parts) == pytest.approx(account["window_s"])
    assert found["kernel_account"]["0"]["stragglers"]["waiting_s"] == pytest.approx(40e-6)
    assert found["kernel_account"]["1"]["stragglers"]["last_to_arrive"] == 1
    assert found["run"]["world_size"] == 2
    assert found["account"]["basis"] == "kernel"
    assert sum(found["account"]["lines"].values()) == pytest.approx(found["account"]["wall_s"])
    assert set(found["account"]["lines"]) <= set(ACCOUNT_LINES)
    assert found["efficiency"]["mfu"]["value"] is None
    assert "trace_only" in [warning["code"] for warning in found["warnings"]]


def test_the_roofline_of_a_known_device(folder: Path) -> None:
    analysis, complaint = analyze_traces(str(folder))
    assert complaint is None
    gemm = analysis.kernel_account["0"].kernels["gemm"]
    assert gemm.flops_per_s == pytest.approx(2 * 4096**3 / 600e-6)
    # bound by compute: 1,365 FLOPs per byte
    assert gemm.roofline_share == pytest.approx(2 * 4096**3 / 600e-6 / 312e12, rel=1e-3)
    assert [(group.name, group.count) for group in analysis.hardware.devices] == [(A100["name"], 2)]
    assert analysis.memory.device_total_bytes == A100["totalGlobalMem"]


def test_no_roofline_of_an_unknown_device(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", document(events(), deviceProperties=[{**A100, "name": "Quantum Toaster 9"}]))
    gemm = analyze_traces(path)[0].kernel_account["0"].kernels["gemm"]
    assert gemm.flops_per_s is not None
    assert gemm.roofline_share is None


def test_the_account_of_a_window(folder: Path) -> None:
    one = analyze_traces(str(folder))[0].kernel_account["0"]
    account = to_account(one)
    assert account.lines["step.forward"] == pytest.approx(600e-6)
    assert account.lines["step.exposed_communication"] == pytest.approx(180e-6)
    assert account.lines["step.host_to_device"] == pytest.approx(50e-6)
    assert account.lines["step.host_gap"] == pytest.approx(70e-6)
    assert account.wall_s == pytest.approx(900e-6)


def test_every_report_renders(folder: Path) -> None:
    analysis, _ = analyze_traces(str(folder))
    assert json.loads(json_report.render(analysis))["kernel_account"]["0"]["kernels"]["gemm"]["count"] == 1
    for report in (terminal, markdown):
        shown = report.render(analysis)
        assert "rank 1 came last to 1 of 1 collectives; others waited up to 40.0 µs for it" in shown
        assert "matrix units ran 100.0 % of the 600 µs of matrix work" in shown
        assert "73.4 %" in shown.split("kernel window" if report is terminal else "Kernel window")[-1]  # of roofline


def test_a_cut_off_trace_is_shown_and_complained_about(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    whole = json.dumps(document(events())).encode()
    path.write_bytes(whole[: whole.index(b"gpu_memcpy")])
    done = run(str(path), "--json")
    assert isinstance(done.exception, EffprofError)
    assert done.exception.exit_code == 2
    found = json.loads(done.stdout)
    assert found["kernel_account"]["0"]["communication_s"] == pytest.approx(180e-6)
    assert "trace_truncated" in [warning["code"] for warning in found["warnings"]]
    analysis, complaint = analyze_traces(str(path))
    assert isinstance(complaint, EffprofError)
    assert "cut off" in complaint.message
    assert analysis.kernel_account["0"].communication_s == pytest.approx(180e-6)


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.json.gz", b"nothing"), ("t.json.gz", b""), ("missing.json.gz", None), ("t.json", b'{"traceEvents": []}')],
)
def test_bad_traces_end_with_2(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EffprofError) as caught:
        analyze_traces(str(path))
    assert caught.value.exit_code == 2
    assert str(path) in caught.value.message


def test_what_is_no_trace_is_left_to_the_reader_of_runs(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"hidden_size": 5})
    done = run(str(tmp_path))
    assert done.exit_code != 0
    assert "not a run directory" in str(done.exception) or "not a run" in done.output


def test_a_trace_of_the_cpu_only_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json.gz", document([annotation("ProfilerStep#1", 0, 10)], rank=4))
    done = run(path, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["kernel_account"]["4"]["window_s"] == 0
    assert "trace_without_device" in [warning["code"] for warning in found["warnings"]]
