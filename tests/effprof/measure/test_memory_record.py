"""The prediction at the first batch, the tracker on a live micro-batch, and a real failure for want of memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from effprof.measure.memory_forecast import forecast_memory
from effprof.measure.memory_tracker import MemoryTracker
from effprof.measure.out_of_memory import is_out_of_memory, requested_bytes
from effprof.measure.profiler import StepProfiler

WIDTH, ROWS = 64, 32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1))


def recorded(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "run.json").read_text()))


def train(path: Path, *, tracks: bool, steps: int = 4) -> list[torch.Tensor]:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    profiler = StepProfiler(model, optimizer=optimizer, run_dir=path, telemetry=False, track_memory=tracks)
    for batch in profiler.watch([torch.randn(ROWS, WIDTH) for _ in range(steps)]):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    profiler.close()
    return list(model.parameters())


def test_a_tracked_training_ends_with_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain = train(tmp_path / "plain", tracks=False)
    torch.manual_seed(1)
    tracked = train(tmp_path / "tracked", tracks=True)
    assert all(torch.equal(first, second) for first, second in zip(plain, tracked, strict=True))
    assert "tracked" not in recorded(tmp_path / "plain")["memory"]
    memory = recorded(tmp_path / "tracked")["memory"]
    # the loop's own loss keeps one column that the copy, which sees the model alone, cannot know
    assert memory["tracked"]["kept_bytes"] == memory["fake_copy"]["kept_bytes"] + ROWS * 4
    # the fullest moment of this step is AdamW's: all gradients, and two denominators of the largest parameter
    gradients = 4 * sum(parameter.numel() for parameter in plain)
    assert memory["tracked"]["peak_at"] == "after"
    assert memory["tracked"]["peak_gradients_bytes"] == gradients
    assert memory["tracked"]["peak_bytes"] == pytest.approx(gradients + 2 * 4 * WIDTH * WIDTH, rel=0.01)
    assert memory["fake_copy"]["device_peak_bytes"] == pytest.approx(
        3 * gradients + memory["tracked"]["peak_bytes"], rel=0.01
    )
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_the_tracker_stops_with_the_training_and_says_why_there_is_nothing(tmp_path: Path) -> None:
    train(tmp_path / "run", tracks=True, steps=1)
    memory = recorded(tmp_path / "run")["memory"]
    assert "tracked" not in memory
    assert "second step" in memory["reasons"]["tracked"]


def test_a_training_that_fails_inside_the_tracked_micro_batch_leaves_no_mode_behind(tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def fail() -> None:
        with StepProfiler(model, optimizer=optimizer, run_dir=tmp_path, telemetry=False, track_memory=True) as profiler:
            for number, batch in enumerate(profiler.watch([torch.randn(ROWS, WIDTH)] * 3)):
                loss = model(batch).square().mean()
                if number == 1:
                    assert torch.utils._python_dispatch._get_current_dispatch_mode() is not None
                    raise ValueError("a defect of the user's")
                loss.backward()
                optimizer.step()

    with pytest.raises(ValueError, match="a defect"):
        fail()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_a_compiled_module_is_not_tracked() -> None:
    model = make()
    tracker = MemoryTracker(torch.nn.ModuleList([torch.compile(model)]))
    tracker.is_due = True
    tracker.begin(torch.zeros(1))
    assert not tracker.end()
    assert "compiled" in tracker.reason


def test_a_model_without_a_config_has_states_in_closed_form_and_activations_from_the_copy() -> None:
    model = make()
    found = forecast_memory(model, torch.randn(ROWS, WIDTH), config={"optimizers": ["AdamW"], "precision": "32-true"})
    total = sum(parameter.numel() for parameter in model.parameters())
    states = found["closed_form"]
    assert [states[f"{name}_bytes"] for name in ("parameters", "gradients", "optimizer")] == [
        4 * total,
        4 * total,
        8 * total,
    ]
    assert states["peak_bytes"] is None
    assert "config" in found["reasons"]["closed_form"]
    rehearsal = found["fake_copy"]
    # ReLU's output stays for the gradients; then one column, its mean's pieces
    assert ROWS * WIDTH * 4 <= rehearsal["kept_bytes"] <= ROWS * WIDTH * 4 + 4 * ROWS * 4
    assert rehearsal["device_peak_bytes"] >= 16 * total


def test_an_unknown_optimizer_is_named_and_the_copy_still_rehearsed() -> None:
    found = forecast_memory(make(), torch.randn(ROWS, WIDTH), config={"optimizers": ["Shampoo"]})
    assert found["closed_form"] is None
    assert "Shampoo" in found["reasons"]["closed_form"]
    assert found["fake_copy"]["peak_bytes"] > 0


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"),
            True,
        ),
        (RuntimeError("HIP out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
        (None, False),
    ],
)
def test_failures_for_want_of_memory_are_told_from_others(error: BaseException | None, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory
    if error is not None:
        outer = RuntimeError("training failed")
        outer.__cause__ = error
        assert is_out_of_memory(outer) is is_memory


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has", round(2.5 * 2**30)),
        ("Tried to allocate 20.00 MiB (GPU 0)", 20 * 2**20),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1125899906842624 bytes.", 1 << 50),
        ("out of memory", None),
    ],
)
def test_the_size_that_was_asked_for_is_read_from_the_message(message: str, size: int | None) -> None:
    assert requested_bytes(message) == size


LIMITED = """
    import resource, sys, torch
    import pytorch_lightning as pl
    from effprof.callbacks import EfficiencyCallback
    from tests.support.tiny_lightning import Tiny, token_loader, trainer

    torch.set_num_threads(1)

    class Hungry(Tiny):
        held = []

        def training_step(self, batch, index):
            if index == 2:
                used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), -1))
            if index >= 2:
                while True:
                    self.held.append(torch.zeros(1 << 22))
            return super().training_step(batch, index)

    try:
        callback = EfficiencyCallback(run_dir=sys.argv[1], telemetry=False)
        trainer(sys.argv[1] + "-root", [callback], max_steps=6).fit(Hungry(), token_loader(8))
    except (RuntimeError, MemoryError) as error:
        print("raised", type(error).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_a_training_that_fills_its_memory_ends_its_log_with_what_filled_it(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    from effprof.analysis.analyze import analyze
    from effprof.runlog.reader import open_run

    path = tmp_path / "run"
    root = Path(__file__).parents[3]
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "raised" in answer.stdout, answer.stderr[-2000:]
    analysis = analyze(open_run(str(path)))
    assert analysis.run.ended == "failed"
    failure = analysis.memory.out_of_memory
    assert failure is not None
    assert failure.requested_bytes == 1 << 24
    # the culprits lead the list: blocks of 16 MiB that the module keeps
    assert failure.largest[0].shape == "(4194304,) float32"
    assert failure.largest[0].bytes == failure.largest[0].number * (1 << 24)
    assert failure.largest[0].number >= 5
    assert failure.states_bytes is not None
