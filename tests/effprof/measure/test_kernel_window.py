"""Kernel windows in real loops on a CPU, and their reduction against traces with known answers."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from effprof.analysis.analyze import analyze
from effprof.errors import EffprofError
from effprof.measure import kernel_window
from effprof.measure.profiler import StepProfiler
from effprof.measure.window_operators import operator_family
from effprof.measure.window_reduction import WindowFacts, reduce_window
from effprof.runlog.reader import RankLog, open_run
from effprof.trace.read import read_trace


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.set_num_threads(1)
    monkeypatch.setattr(kernel_window, "WARM_UP_STEPS", 5)
    before = signal.getsignal(signal.SIGUSR2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    assert signal.getsignal(signal.SIGUSR2) is before


def train(path: Path, steps: int = 30, at: Callable[[int, StepProfiler], None] | None = None, **settings: Any) -> Any:
    """A loop of `steps` steps whose forward waits 10 ms in the host; returns the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1), nn.ReLU(), nn.Linear(64, 64))
    optimizer = torch.optim.AdamW(model.parameters())
    profiler = StepProfiler(model, run_dir=path, peak_tflops=0.1, telemetry=False, **settings)
    for number, batch in enumerate(profiler.watch([torch.ones(32, 64)] * steps)):
        if at is not None:
            at(number, profiler)
        with profiler.phase("forward"):
            time.sleep(0.01)
            loss = model(batch).square().mean()
        with profiler.phase("backward"):
            loss.backward()
        with profiler.phase("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
    profiler.close()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def rank_of(path: Path) -> RankLog:
    return open_run(str(path)).attempts[0].ranks[0]


def profiled_steps(rank: RankLog) -> list[int]:
    marks = rank.columns.get("profiled", np.zeros(rank.steps))
    return [int(step) for step, mark in zip(rank.columns["step"], marks, strict=True) if mark == 1]


def codes(rank: RankLog) -> list[str]:
    return [str(event.data.get("code")) for event in rank.events]


def test_one_window_after_the_warm_up(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    recorded = train(tmp_path / "run", kernel_window=True, keep_trace=True)
    assert torch.equal(plain, recorded)
    rank = rank_of(tmp_path / "run")
    (window,) = rank.kernels
    assert (window.first_step, window.steps, window.trigger, window.basis) == (5, 3, "schedule", "operators")
    assert sum(window.lines.values()) == pytest.approx(window.window_s)
    # three steps that wait 10 ms each in forward, where no operator runs
    assert 0.03 < window.by_phase["forward"]["step.host_gap"] < window.window_s
    assert {"gemm", "optimizer", "elementwise"} <= set(window.families)
    assert set(window.cost) == {"start_s", "stop_s", "export_s", "reduce_s"}
    marked = profiled_steps(rank)
    assert marked[:3] == [6, 7, 8]
    assert not rank_of(tmp_path / "plain").kernels
    kept = read_trace(str(tmp_path / "run" / "attempt-000" / window.trace))
    assert kept.events > 100
    # starting and stopping the profiler lies in effprof's own time, of the steps that it happened in
    spent = dict(zip(rank.columns["step"].astype(int).tolist(), rank.columns["effprof_ns"] / 1e9, strict=True))
    assert spent[6] >= window.cost["start_s"]
    assert spent[9] >= window.cost["stop_s"]
    result = analyze(open_run(str(tmp_path / "run")))
    assert result.account.basis == "kernel"
    assert result.efficiency.steps.profiled == len(marked)
    assert sum(result.account.lines.values()) == pytest.approx(result.account.wall_s, abs=1e-9)
    assert 0.22 < result.account.lines["step.host_gap"] < 1.5


def test_a_window_every_n_steps(tmp_path: Path) -> None:
    # the next one waits for the one before to be reduced
    train(tmp_path / "run", steps=40, at=lambda n, _: time.sleep(0.1 if n > 8 else 0), kernel_window=20)
    assert [window.first_step for window in rank_of(tmp_path / "run").kernels] == [5, 25]


def test_a_touched_file_asks_for_a_window(tmp_path: Path) -> None:
    def touch(number: int, profiler: StepProfiler) -> None:
        if number == 10:
            assert profiler.run_dir is not None
            (Path(profiler.run_dir) / "profile").touch()
        time.sleep(0.1)  # the file is looked for once a second

    train(tmp_path / "run", steps=40, at=touch)
    (window,) = rank_of(tmp_path / "run").kernels
    assert window.trigger == "file"
    assert 10 < window.first_step < 35


def test_a_file_left_from_before_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").touch()
    train(tmp_path / "run", at=lambda *_: time.sleep(0.06))
    assert not rank_of(tmp_path / "run").kernels


def test_a_signal_asks_for_a_window(tmp_path: Path) -> None:
    def send(number: int, _: StepProfiler) -> None:
        if number == 10:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.05)  # another thread may take the signal; the handler runs once this one is awake

    train(tmp_path / "run", at=send)
    (window,) = rank_of(tmp_path / "run").kernels
    assert (window.trigger, window.first_step) == ("signal", 11)


def test_a_handler_of_the_user_s_is_left_alone(tmp_path: Path) -> None:
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append(1))
    try:
        train(tmp_path / "run", at=lambda number, _: os.kill(os.getpid(), signal.SIGUSR2) if number == 10 else None)
        assert heard == [1]
        assert not rank_of(tmp_path / "run").kernels
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_user_s_own_profiler_goes_first(tmp_path: Path) -> None:
    own = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    with own:
        train(tmp_path / "running", kernel_window=True)
    assert any(event.key == "aten::addmm" for event in own.key_averages())
    assert codes(rank_of(tmp_path / "running")) == ["kernel_window_skipped"]
    waiting = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        schedule=torch.profiler.schedule(wait=10, warmup=1, active=2, repeat=1),
    )
    with waiting:  # not recording when the window is due, but about to
        train(tmp_path / "scheduled", at=lambda *_: waiting.step(), kernel_window=True)
    assert codes(rank_of(tmp_path / "scheduled")) == ["kernel_window_skipped"]


@pytest.mark.parametrize("method", ["start", "stop", "export_chrome_trace"])
def test_a_profiler_that_fails_never_reaches_the_loop(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(torch.profiler._KinetoProfile, method)  # type: ignore[attr-defined]

    def fail(self: Any, *arguments: Any) -> None:
        if method == "stop":
            real(self, *arguments)
        raise RuntimeError("no device")

    monkeypatch.setattr(torch.profiler._KinetoProfile, method, fail)  # type: ignore[attr-defined]
    train(tmp_path / "run", kernel_window=True)
    rank = rank_of(tmp_path / "run")
    assert rank.steps == 30
    assert not rank.kernels
    assert "kernel_window_failed" in codes(rank)
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]


def test_a_loop_that_ends_inside_or_before_a_window(tmp_path: Path) -> None:
    train(tmp_path / "inside", steps=7, kernel_window=True)
    rank = rank_of(tmp_path / "inside")
    assert codes(rank) == ["kernel_window_cut"]
    assert profiled_steps(rank) == [6, 7]
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    train(tmp_path / "before", steps=3, kernel_window=True)
    assert codes(rank_of(tmp_path / "before")) == ["kernel_window_missed"]
    train(tmp_path / "none", steps=3)
    assert codes(rank_of(tmp_path / "none")) == []


# Traces with known answers: µs on the trace's clock, which the facts' clock is 1 ms behind.


def write_trace(path: Path, events: list[dict[str, Any]], **frame: Any) -> str:
    path.write_text(json.dumps({"schemaVersion": 1, **frame, "traceEvents": events}))
    return str(path)


def event(cat: str, name: str, start: float, end: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start, "pid": 1, "tid": tid, "args": args}


FACTS = {
    "marks": [
        ("input_wait", 0),
        ("forward", 100_000),
        ("backward", 400_000),
        ("optimizer", 800_000),
        ("other", 900_000),
    ],
    "steps": {7: 0},
}
STEP = event("user_annotation", "ProfilerStep#7", 1000, 2000)


def test_operators_of_a_cpu(tmp_path: Path) -> None:
    events = [
        STEP,
        event("cpu_op", "aten::linear", 1100, 1200),
        event("cpu_op", "aten::addmm", 1120, 1200),  # inside the linear: its time is its own
        event("cpu_op", "aten::gelu", 1250, 1300),
        event("cpu_op", "MmBackward0", 1400, 1500),
        event("cpu_op", "aten::mm", 1450, 1500),
        event("cpu_op", "aten::mm", 1460, 1520, tid=2),  # another thread: overlap counts once
        event("user_annotation", "gloo:all_reduce", 1480, 1600, tid=3),
        event("user_annotation", "gloo:send", 1620, 1650, tid=3),
        event("cpu_op", "aten::lerp_", 1810, 1850),
    ]
    facts = WindowFacts(**{**FACTS, "has_device": False})  # type: ignore[arg-type]
    summary = reduce_window(write_trace(tmp_path / "t.json", events), facts)
    lines = {name: round(1e6 * seconds, 3) for name, seconds in summary.lines.items()}
    assert lines == {
        "step.input_wait": 100,
        "step.forward": 150,
        "step.backward": 120,
        "step.optimizer": 40,
        "step.exposed_communication": 80,  # 1520 to 1600
        "step.pipeline_bubble": 30,
        "step.host_gap": 150 + 170 + 60,
    }
    families = {name: round(1e6 * seconds, 3) for name, seconds in summary.families.items()}
    assert families == {"gemm": 20 + 80 + 50 + 60, "elementwise": 50, "other": 50, "optimizer": 40}
    assert summary.window_s == pytest.approx(900e-6)
    assert summary.account == {}
    assert summary.operators == {}, "without an operator that touches no data there is no measure of calling one"


def test_what_operators_take_however_little_data(tmp_path: Path) -> None:
    events = [
        STEP,
        event("cpu_op", "aten::view", 1100, 1101),
        event("cpu_op", "aten::transpose", 1105, 1107),
        event("cpu_op", "aten::t", 1110, 1113),
        event("cpu_op", "aten::mm", 1120, 1220),  # 9 × 2 µs of its 100
        event("cpu_op", "aten::gelu", 1230, 1235),  # below 5 × 2 µs: all of it
        event("cpu_op", "aten::lerp_", 1810, 1850),  # the optimizer's
    ]
    facts = WindowFacts(**{**FACTS, "has_device": False})  # type: ignore[arg-type]
    operators = reduce_window(write_trace(tmp_path / "t.json", events), facts).operators
    assert {name: round(1e6 * value, 3) for name, value in operators.items() if name != "count"} == {
        "own_s": 1 + 2 + 3 + 100 + 5,
        "dispatch_s": 2,
        "fixed_s": 1 + 2 + 3 + 18 + 5,
    }
    assert operators["count"] == 5


def test_kernels_of_a_device(tmp_path: Path) -> None:
    def launched(name: str, at: float, start: float, end: float, number: int) -> list[dict[str, Any]]:
        return [
            event("cuda_runtime", "cudaLaunchKernel", at, at + 2, correlation=number),
            event("kernel", name, start, end, tid=7, correlation=number, device=0, stream=7),
        ]

    events = [
        STEP,
        *launched("sm90_gemm_forward", 1150, 1160, 1300, 1),
        # launched in backward, still running when the host is in the optimizer
        *launched("sm90_gemm_backward", 1410, 1420, 1820, 2),
        *launched("ncclDevKernel_AllReduce_Sum_bf16", 1500, 1800, 1900, 3),
        *launched("multi_tensor_apply_kernel_adam", 1860, 1900, 1950, 4),
    ]
    properties = [{"id": 0, "name": "NVIDIA H100 80GB HBM3"}]
    facts = WindowFacts(**{**FACTS, "has_device": True})  # type: ignore[arg-type]
    summary = reduce_window(write_trace(tmp_path / "t.json", events, deviceProperties=properties), facts)
    lines = {name: round(1e6 * seconds, 3) for name, seconds in summary.lines.items() if seconds > 0}
    assert lines == {
        "step.forward": 140,
        "step.backward": 400,
        "step.optimizer": 50,
        "step.exposed_communication": 80,  # 1820 to 1900
        "step.host_gap": 120,  # 1300 to 1420
    }
    assert summary.window_s == pytest.approx(790e-6)
    assert sum(summary.lines.values()) == pytest.approx(summary.window_s)
    assert summary.account["communication_exposed_s"] == pytest.approx(80e-6)
    assert "gemm" in summary.families


def test_traces_that_say_nothing_are_refused(tmp_path: Path) -> None:
    other = [event("user_annotation", "ProfilerStep#8", 1000, 2000), event("cpu_op", "aten::mm", 1100, 1200)]
    cpu = WindowFacts(**{**FACTS, "has_device": False})  # type: ignore[arg-type]
    with pytest.raises(EffprofError, match="none of its steps"):
        reduce_window(write_trace(tmp_path / "other.json", other), cpu)
    device = WindowFacts(**{**FACTS, "has_device": True})  # type: ignore[arg-type]
    with pytest.raises(EffprofError, match="no device activity"):
        reduce_window(write_trace(tmp_path / "none.json", [STEP, *other]), device)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("aten::addmm", "gemm"),
        ("aten::bmm", "gemm"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm_backward", "normalisation"),
        ("aten::mul_", "elementwise"),
        ("aten::sum", "reduction"),
        ("aten::cat", "memory"),
        ("aten::embedding", "embedding"),
        ("aten::_grouped_mm", "grouped_gemm"),
        ("aten::item", "other"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "other"),
    ],
)
def test_families_of_operators(name: str, family: str) -> None:
    assert operator_family(name) == family
