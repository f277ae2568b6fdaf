"""Analyses for the reports' tests: made by hand, so that every number in a snapshot is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effprof.analysis.analyze import Examined, analyze, examine
from effprof.analysis.model import Analysis
from effprof.runlog.reader import open_run
from effprof.runlog.schema import FlopsRecord, Probe, Telemetry

GIB = 2**30
NOW_S = 1_760_100_000.0


@pytest.fixture
def moe_run(tmp_path: Path, hand_made: Any) -> Any:
    """Two ranks of a mixture of experts, killed and resumed, with memory, telemetry and every kind of line."""
    run = hand_made(tmp_path / "moe", "moe-24l").record(
        config={"precision": "bf16-mixed"},
        model={
            "name": "moe-24l",
            "parameters_bytes": 9 * GIB,
            "gradients_bytes": 9 * GIB,
            "optimizer_bytes": 18 * GIB,
        },
        parallel={"strategy": "FSDP", "data_parallel_size": 2},
    )
    for rank in (0, 1):
        first = [run.step(1.5), *(run.step(0.1) for _ in range(59))]
        run.rank(first, rank=rank, world_size=2, end=None)
        later = [run.step(1.0), *(run.step(0.1 + 0.001 * (n % 5), logging=0.001) for n in range(99))]
        lines = [
            run.memory(
                peak_allocated_bytes=(58 + rank) * GIB,
                peak_reserved_bytes=61 * GIB,
                device_total_bytes=80 * GIB,
                process_rss_bytes=3 * GIB,
            ),
            run.experts({"layers.0.mlp": [40, 20, 10, 10], "layers.1.mlp": [20, 20, 20, 20]}, [3, 0]),
        ]
        run.rank(
            later,
            rank=rank,
            world_size=2,
            attempt=1,
            start_s=20.0,
            first_step=51,
            lines=lines,
            tail=[("checkpoint", 2.5), ("evaluation", 1.25)],
            host=f"node-{'ab'[rank]}",
        )
    readings = {
        "power_w": {"unit": "W", "scope": "board", "kind": "gauge"},
        "utilization_percent": {"unit": "%", "scope": "board", "kind": "gauge"},
        "energy_j": {"unit": "J", "scope": "board", "kind": "counter"},
        "clock_sm_hz": {"unit": "Hz", "scope": "die", "kind": "gauge"},
    }
    samples = [
        Telemetry(
            monotonic_ns=n,
            values={
                "GPU-1.power_w": 400.0 + 10 * n,
                "GPU-1.utilization_percent": 99,
                "GPU-1.energy_j": 1000 * n,
                "GPU-1.clock_sm_hz": None,
            },
            missing={"GPU-1.clock_sm_hz": "not_supported"},
        )
        for n in range(3)
    ]
    return run.node([Probe(probe="nvidia", readings=readings)], samples, attempt=1)


@pytest.fixture
def moe_analysis(moe_run: Any) -> Analysis:
    analysis = analyze(open_run(str(moe_run.path)), now_s=NOW_S)
    analysis.run.path = "runs/moe-24l"
    return analysis


@pytest.fixture
def cpu_analysis(tmp_path: Path, hand_made: Any) -> Analysis:
    """A CPU run whose FLOPs are not known, killed after a few steps."""
    run = hand_made(tmp_path / "cpu", "cpu").record(
        flops=FlopsRecord(reason="the model uses a custom kernel"),
        hardware={"name": "Xeon"},
        framework="pytorch",
        framework_version="2.13.0",
        model={"class": "Net"},
    )
    run.rank([run.step(0.1)] * 4, end=None, device={"type": "cpu", "name": "Xeon"})
    analysis = analyze(open_run(str(run.path)), now_s=NOW_S)
    analysis.run.path = "runs/cpu"
    return analysis


@pytest.fixture
def two_runs(tmp_path: Path, hand_made: Any) -> list[Examined]:
    """The same work on two chips, the second with another precision."""
    a100 = {"type": "cuda", "index": 0, "name": "NVIDIA A100-SXM4-80GB", "memory_bytes": 80 * GIB}
    first = hand_made(tmp_path / "first", "first").record(config={"precision": "bf16-mixed"})
    first.rank([first.step(0.1 + 0.01 * (n % 7)) for n in range(100)])
    peak = {"flops_per_s": 4e8, "dtype": "bf16", "source": "datasheet", "kind": "datasheet"}
    second = hand_made(tmp_path / "second", "second").record(
        config={"precision": "16-mixed"}, hardware={"name": a100["name"], "peak": peak}
    )
    second.rank([second.step(0.2 + 0.02 * (n % 7)) for n in range(100)], device=a100)
    third = hand_made(tmp_path / "third", "third").record(config={"precision": "bf16-mixed"})
    third.rank([third.step(0.1 + 0.01 * ((n + 3) % 7)) for n in range(100)])
    runs = [examine(open_run(str(run.path)), now_s=NOW_S) for run in (first, second, third)]
    for run in runs:
        run.analysis.run.path = f"runs/{run.analysis.run.id}"
    return runs


@pytest.fixture
def hostile_analysis(tmp_path: Path, hand_made: Any) -> Analysis:
    """Every string that a log may hold tries to drive the terminal or to break out of Markdown."""
    bad = "\x1b[2J\x1b]0;x\x07| **b** <script>alert(1)</script> [l](javascript:x) `c`\n# h \u202e"
    run = hand_made(tmp_path / "bad", "bad").record(
        framework=bad,
        framework_version=bad,
        model={"name": bad},
        config={"precision": bad},
        hardware={"name": bad, "peak": {"flops_per_s": 1e9, "dtype": "bf16", "source": bad}},
        warnings=[{"code": bad, "message": bad}],
        parallel={"strategy": bad},
    )
    for rank in (0, 1):
        run.rank(
            [run.step()] * 20,
            rank=rank,
            world_size=2,
            host=bad,
            device={"type": "cuda", "name": bad, "index": 0},
            end="failed",
            reason=bad,
            lines=[run.experts({bad: [1, 2]}), run.event(bad, bad)],
        )
    samples = [Telemetry(monotonic_ns=1, values={f"{bad}.{bad}": 1.0, "x.y": None}, missing={"x.y": bad})]
    run.node([Probe(probe="p", readings={bad: {"unit": bad}})], samples)
    return analyze(open_run(str(run.path)), now_s=NOW_S)
