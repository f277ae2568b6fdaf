"""The benchmark scripts run and write what they promise; their figures are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run_benchmark(script: str, out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a benchmark, return the JSON it wrote and what it printed."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments, "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=out.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        timeout=400,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    result = json.loads(out.read_text())
    assert {"benchmark", "command", "date", "machine", "versions"} <= set(result)
    return result, done.stdout


def test_overhead(tmp_path: Path) -> None:
    result, table = run_benchmark("overhead.py", tmp_path / "overhead.json", "--quick")
    whole = result["whole_step"]["10"]
    arms = {"no callback, again", "empty Callback()", "EfficiencyCallback", "EfficiencyCallback, no writer thread"}
    others = {"ThroughputMonitor", "TraceMLCallback", "DeviceStatsMonitor"}
    assert set(whole["added_us"]) == arms | others
    assert set(whole["p999_us"]) == arms | others | {"no callback"}
    hooks = result["hooks"]["10"]["median"]
    assert hooks["empty_hooks"]["median"] > 0
    assert hooks["effprof_hooks"]["median"] > 0, "effprof's hooks were not timed"
    assert hooks["effprof_input_split"]["median"] > 0, "the input split was not timed"
    assert hooks["effprof_token_counting"]["median"] > 0, "token counting was not timed"
    assert "| EfficiencyCallback " in table


def test_gpu_check_on_a_cpu(tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--tiny", "--no-compile", "--models", "moe")
    result, _ = run_benchmark("gpu_check.py", tmp_path / "gpu.json", *arguments)
    moe = result["models"]["moe"]
    assert moe["efficiency"]["conventions"]["exact"]["flops_per_token"] > 0
    assert moe["syncs"]["with"]["hook_spans"] >= 6 * moe["syncs"]["steps"]
    assert moe["syncs"]["with"]["inside_effprof"] == {}
    assert moe["overhead"]["step_ms_without"]["median"] > 0


def test_turns(tmp_path: Path) -> None:
    result, printed = run_benchmark("turns.py", tmp_path / "turns.json", "--quick")
    assert "--out" not in result["command"]
    for kind in ("one_after_the_other", "in_turns"):
        assert len(result[kind]["gains"]) == 2
        assert result[kind]["log_ratio_sd"] >= 0
        assert kind in printed


def test_startup(tmp_path: Path) -> None:
    result, _ = run_benchmark("startup.py", tmp_path / "startup.json", "--repeats", "1")
    assert set(result["seconds"]) >= {"effprof --help", "effprof analyze --help"}


def test_log_speed(tmp_path: Path) -> None:
    quick = ("--steps", "2000", "--repeats", "1", "--ranks", "1", "20", "--rank-steps", "200")
    result, table = run_benchmark("log_speed.py", tmp_path / "log.json", *quick)
    assert [row["ranks"] for row in result["ranks"]] == [1, 20]
    assert all(row["records_per_s"]["median"] > 0 for row in result["layouts"])
    assert len(result["layouts"]) == 5
    assert "step records/s" in table


def real_trace(name: str) -> Path:
    path = BENCHMARKS.parent.parent / "shared" / "traces" / name
    if not path.exists():
        pytest.skip(f"{path} is not here: the traces of HolisticTraceAnalysis' tests lie beside the repository only")
    return path


def test_trace_speed(tmp_path: Path) -> None:
    source = real_trace("hta_nccl.json.gz")
    arguments = ("--repeats", "1", "--no-large", "--traces", str(source))
    result, table = run_benchmark("trace_speed.py", tmp_path / "speed.json", *arguments)
    (trace,) = result["traces"]
    assert trace["events"] == 40573
    assert set(trace["arms"]) == {"effprof", "hta", "floor"}
    assert trace["ratios"]["hta"]["cpu_s"] > 2, "effprof is not much faster than HTA any more"
    assert trace["ratios"]["hta"]["peak_mb"] > 2
    assert "| hta_nccl.json.gz" in table


def test_a_replicated_trace_is_the_source_again_and_again(tmp_path: Path) -> None:
    from effprof.trace.account import account_traces

    source, large = real_trace("hta_control.json.gz"), tmp_path / "large.json"
    script = "import sys; from pathlib import Path; from trace_inputs import replicate; "
    script += "replicate(Path(sys.argv[1]), Path(sys.argv[2]), 100)"
    subprocess.run([sys.executable, "-c", script, str(source), str(large)], check=True, cwd=BENCHMARKS)
    one, many = account_traces(str(source)).ranks[3], account_traces(str(large)).ranks[3]
    assert many.events == 3 * one.events
    for key in ("compute_s", "communication_s", "communication_exposed_s", "memory_copy_s", "memory_copy_exposed_s"):
        assert getattr(many, key) == pytest.approx(3 * getattr(one, key), rel=1e-9)
    assert many.idle.unknown_s == pytest.approx(3 * one.idle.unknown_s, abs=1e-9)
