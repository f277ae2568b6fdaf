"""StepProfiler in plain PyTorch loops: both ways of using it, and what it does when things go wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from effprof import StepProfiler
from effprof.analysis.analyze import analyze
from effprof.errors import EffprofError
from effprof.runlog.reader import RankLog, open_run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make(directory: Path, model: nn.Module | None = None, **settings: Any) -> StepProfiler:
    return StepProfiler(model, run_dir=directory, **{"peak_tflops": 0.1, "telemetry": False, **settings})


def read(directory: Path) -> RankLog:
    return open_run(str(directory)).attempts[-1].ranks[0]


def net() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return model, torch.optim.AdamW(model.parameters())


def run_loop(profiler: StepProfiler, batches: list[torch.Tensor], model: nn.Module, optimizer: Any) -> None:
    for index, batch in enumerate(profiler.watch(batches), start=1):
        with profiler.phase("forward"):
            loss = model(batch).square().mean()
        with profiler.phase("backward"):
            loss.backward()
        if index % profiler._accumulate == 0:
            with profiler.phase("optimizer"):
                optimizer.step()
                optimizer.zero_grad()


def test_watch_measures_phases_steps_and_flops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = net()
    profiler = make(tmp_path / "run", model, accumulate=2)
    run_loop(profiler, [torch.randn(6, 8) for _ in range(20)], model, optimizer)
    profiler.close()
    rank = read(tmp_path / "run")
    assert rank.columns["step"].tolist() == list(range(1, 11))
    assert set(rank.columns["micro_batches"]) == {2}
    assert set(rank.columns["samples"]) == {12}
    for phase in ("input_wait", "forward", "backward", "optimizer", "effprof"):
        assert np.nansum(rank.columns[f"{phase}_ns"]) > 0, phase
    assert rank.end is not None
    assert rank.end.status == "completed"
    # the first Linear needs no input gradient: 2 x (forward, weight) + second: 3 x
    per_sample = 2 * 2 * 8 * 16 + 3 * 2 * 16 * 4
    assert analyze(open_run(str(tmp_path / "run"))).efficiency.conventions.exact.flops_per_step == 12 * per_sample
    assert f"effprof analyze {tmp_path / 'run'}" in capsys.readouterr().err


def test_the_training_threads_processor_time_tells_sleeping_from_working(tmp_path: Path) -> None:
    def busy(name: str, work: Any) -> float:
        model, optimizer = net()

        def batches() -> Any:
            ends = time.monotonic() + 3.5
            while time.monotonic() < ends:
                work()
                yield torch.randn(6, 8)

        with make(tmp_path / name, model) as profiler:
            run_loop(profiler, batches(), model, optimizer)
        share = analyze(open_run(str(tmp_path / name))).ranks[0].training_thread_busy
        assert share is not None
        return share

    asleep = busy("asleep", lambda: time.sleep(0.02))
    working = busy("working", lambda: sum(range(200_000)))
    assert asleep < 0.5 * working


def test_training_is_bit_identical_with_and_without(tmp_path: Path) -> None:
    def weights(is_measured: bool) -> torch.Tensor:
        model, optimizer = net()
        model.append(nn.Dropout(0.3))
        batches = [torch.randn(6, 8) for _ in range(10)]
        profiler = make(tmp_path / "bits", model)
        if is_measured:
            run_loop(profiler, batches, model, optimizer)
            profiler.close()
        else:
            for batch in batches:
                model(batch).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(True), weights(False))


def test_step_as_a_context_and_time_between_steps(tmp_path: Path) -> None:
    with make(tmp_path / "run", flops_per_step=5e6) as profiler:
        for _ in range(3):
            with profiler.step():
                with profiler.phase("generation"):
                    sum(range(20_000))
                with profiler.phase("optimizer"):
                    sum(range(1_000))
            with profiler.phase("evaluation"):
                sum(range(50_000))
    rank = read(tmp_path / "run")
    assert rank.steps == 3
    assert np.nansum(rank.columns["generation_ns"]) > 0
    # the evaluation after the last step belongs to no step
    assert np.count_nonzero(np.nan_to_num(rank.columns["evaluation_ns"])) == 2
    assert [span.name for span in rank.spans].count("evaluation") == 1
    assert set(rank.columns["flops"]) == {5e6}


def test_a_loop_left_after_its_optimizer_step_has_done_the_step(tmp_path: Path) -> None:
    model, optimizer = net()
    profiler = make(tmp_path / "run", model)
    for index, batch in enumerate(profiler.watch([torch.randn(6, 8)] * 10)):
        with profiler.phase("forward"):
            loss = model(batch).square().mean()
        with profiler.phase("backward"):
            loss.backward()
        with profiler.phase("optimizer"):
            optimizer.step()
        if index == 4:
            break
    profiler.close()
    assert read(tmp_path / "run").steps == 5


def test_an_error_in_the_loop_is_recorded_and_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), make(tmp_path / "run", flops_per_step=1.0) as profiler, profiler.step():
        raise ZeroDivisionError("no more data")
    end = read(tmp_path / "run").end
    assert end is not None
    assert (end.status, end.reason) == ("failed", "ZeroDivisionError: no more data")


@pytest.mark.parametrize(("last_line", "status"), [("pass", "completed"), ("raise RuntimeError('gone')", "failed")])
def test_a_script_that_never_closes_is_closed_at_exit(tmp_path: Path, last_line: str, status: str) -> None:
    script = f"""
from effprof import StepProfiler
profiler = StepProfiler(flops_per_step=1e6, peak_tflops=0.1, telemetry=False)
for _ in profiler.watch(range(3)):
    pass
{last_line}
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, timeout=120, check=False)
    rank = read(next((tmp_path / "effprof_runs").iterdir()))
    assert rank.steps == 3
    assert rank.end is not None
    assert rank.end.status == status


def test_compilations_are_told_from_the_steps_that_set_them_off(tmp_path: Path) -> None:
    model, optimizer = net()
    torch._dynamo.reset()  # what other tests compiled must not make the first shape a dynamic one
    compiled = torch.compile(model, backend="aot_eager")
    profiler = make(tmp_path / "run", model)
    batches = [torch.randn(4, 8)] * 4 + [torch.randn(5, 8)] * 4  # a new shape compiles again
    run_loop(profiler, batches, compiled, optimizer)
    profiler.close()
    compiling = np.flatnonzero(np.nan_to_num(read(tmp_path / "run").columns["compile_ns"]))
    assert compiling.tolist() == [0, 4]
    assert open_run(str(tmp_path / "run")).record.config["compile_is_measured"] is True


def test_refusals_say_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(EffprofError, match="accumulate=0"):
        StepProfiler(accumulate=0)
    profiler = make(tmp_path / "run")
    with pytest.raises(EffprofError, match="forward"), profiler.phase("fordward"):
        pass
    with pytest.raises(EffprofError, match="not open"):
        profiler.session.write_record()
