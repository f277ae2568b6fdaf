"""Loops that never call effprof, measured by hooks: plain, Fabric, Accelerate and DeepSpeed, all with equal figures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from lightning_fabric import Fabric

from effprof.analysis.analyze import analyze
from effprof.analysis.model import Analysis
from effprof.callbacks import attach
from effprof.callbacks.accelerate import attach as attach_accelerator
from effprof.callbacks.fabric import EfficiencyCallback
from effprof.callbacks.hooks import HookedLoop
from effprof.runlog.reader import open_run
from effprof.workload.architecture import from_hf_config
from effprof.workload.flops import flops_model
from tests.support.tiny_huggingface import ACCUMULATE, KEPT, ROWS, Rows, llama, mixtral

STEPS = 6


def objects(model: Any) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return optimizer, torch.utils.data.DataLoader(Rows(ROWS * ACCUMULATE * STEPS), batch_size=ROWS)


def train(
    model: Any, optimizer: Any, loader: Iterable[Any], backward: Callable[[Any], Any], model_for_eval: Any = None
) -> list[float]:
    """The loop, as people write it: accumulation, an evaluation in the middle."""
    losses = []
    for index, batch in enumerate(loader):
        loss = model(**batch).loss
        backward(loss / ACCUMULATE)
        losses.append(loss.item())
        if index % ACCUMULATE == ACCUMULATE - 1:
            optimizer.step()
            optimizer.zero_grad()
        if index == 5:
            model.eval()
            with torch.no_grad():
                model(**batch)
            model.train()
    return losses


def plain(model: Any, folder: Path) -> str | None:
    optimizer, loader = objects(model)
    with attach(model, optimizer, run_dir=folder, telemetry=False) as run:
        train(model, optimizer, run.watch(loader), lambda loss: loss.backward())
    return run.run_dir


def without_optimizer(model: Any, folder: Path) -> str | None:
    optimizer, loader = objects(model)
    with attach(model, run_dir=folder, telemetry=False) as run:
        train(model, optimizer, run.watch(loader), lambda loss: loss.backward())
    return run.run_dir


def fabric(model: Any, folder: Path) -> str | None:
    optimizer, loader = objects(model)
    callback = EfficiencyCallback(folder, telemetry=False)
    runner = Fabric(accelerator="cpu", devices=1, callbacks=[callback])
    wrapped, outer = runner.setup(model, optimizer)
    train(wrapped, outer, callback.watch(runner.setup_dataloaders(loader)), runner.backward)
    runner.call("on_train_end")
    return callback.run_dir


def accelerate(model: Any, folder: Path) -> str | None:
    optimizer, loader = objects(model)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    wrapped, outer, batches = accelerator.prepare(model, optimizer, loader)
    run = attach_accelerator(accelerator, wrapped, outer, run_dir=folder, telemetry=False)
    for index, batch in enumerate(run.watch(batches)):
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(**batch).loss)
            outer.step()
            outer.zero_grad()
        if index == 5:
            wrapped.eval()
            with torch.no_grad():
                wrapped(**batch)
            wrapped.train()
    run.close()
    return run.run_dir


LOOPS = [plain, without_optimizer, fabric, accelerate]
FRAMEWORKS = {"fabric": "lightning-fabric", "accelerate": "accelerate"}


def analysis_of(run_dir: str | None) -> Analysis:
    assert run_dir is not None
    return analyze(open_run(run_dir))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("make", [llama, mixtral])
def test_every_loop_has_the_same_steps_tokens_and_flops(
    loop: Callable[[Any, Path], str | None], make: Callable[[], Any], tmp_path: Path
) -> None:
    model = make()
    found = analysis_of(loop(model, tmp_path / "run"))
    assert found.run.framework == FRAMEWORKS.get(loop.__name__, "pytorch")
    assert found.run.ended == "completed"
    efficiency = found.efficiency
    assert efficiency.steps.total == STEPS
    assert efficiency.samples_per_step == ROWS * ACCUMULATE
    assert efficiency.tokens_per_step == ROWS * ACCUMULATE * 16
    assert efficiency.padding_share == pytest.approx(8 / 24)
    spec = from_hf_config(model.config.to_dict())
    expected = flops_model(spec).conventions["6n"]["tokens"] * efficiency.tokens_per_step
    assert efficiency.conventions.six_n.flops_per_step == pytest.approx(expected, rel=1e-6)
    assert efficiency.mfu.value is not None
    lines = found.account.lines
    for name in ("step.input_wait", "step.forward", "step.backward", "step.optimizer", "evaluation"):
        assert lines[name] > 0, name
    assert sum(lines.values()) == pytest.approx(found.account.wall_s, rel=1e-6)
    assert lines["unattributed"] < 0.05 * found.account.wall_s
    assert found.run.config["accumulate"] == ACCUMULATE
    assert (found.moe is not None) == (make is mixtral)


def test_the_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    bare, measured = llama(), llama()
    optimizer, loader = objects(bare)
    told = train(bare, optimizer, loader, lambda loss: loss.backward())
    run_dir = plain(measured, tmp_path / "run")
    for one, other in zip(bare.state_dict().values(), measured.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    recorded = open_run(str(run_dir)).attempts[0].ranks[0].columns["loss"]
    means = torch.tensor(told).view(STEPS, ACCUMULATE).mean(1)
    assert recorded == pytest.approx(means.tolist(), rel=1e-5)
    assert not measured._forward_hooks
    assert not measured._forward_pre_hooks


def test_another_optimizer_of_the_process_ends_no_step(tmp_path: Path) -> None:
    model, other = llama(), torch.nn.Linear(2, 2)
    optimizer, loader = objects(model)
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    with attach(model, run_dir=tmp_path / "run", telemetry=False) as run:
        for batch in run.watch(loader):
            model(**batch).loss.backward()
            other(torch.ones(1, 2)).sum().backward()
            foreign.step()
            optimizer.step()
    assert analysis_of(run.run_dir).efficiency.steps.total == STEPS * ACCUMULATE


def test_several_optimizers_make_one_step(tmp_path: Path) -> None:
    model = llama()
    parameters = list(model.parameters())
    first = torch.optim.SGD(parameters[:3], lr=0.1)
    second = torch.optim.SGD(parameters[3:], lr=0.1)
    loader = objects(model)[1]
    with attach(model, first, second, run_dir=tmp_path / "run", telemetry=False) as run:
        for batch in run.watch(loader):
            model(**batch).loss.backward()
            first.step()
            second.step()
    assert analysis_of(run.run_dir).efficiency.steps.total == STEPS * ACCUMULATE


def test_a_loop_that_is_left_or_fails_says_how_it_ended(tmp_path: Path) -> None:
    model = llama()
    optimizer, loader = objects(model)
    run = attach(model, optimizer, run_dir=tmp_path / "r", telemetry=False)

    def fails() -> None:
        with run:
            for index, batch in enumerate(run.watch(loader)):
                model(**batch).loss.backward()
                optimizer.step()
                if index == 3:
                    raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    found = analysis_of(run.run_dir)
    assert (found.run.ended, found.efficiency.steps.total) == ("failed", 4)


def test_an_error_inside_a_hook_is_warned_of_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    optimizer, loader = objects(model)
    run = attach(model, optimizer, run_dir=tmp_path / "run", telemetry=False)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("inside effprof")

    monkeypatch.setattr(HookedLoop, "_end_step", broken)
    with pytest.warns(UserWarning, match="measuring failed and is off"):
        losses = train(model, optimizer, run.watch(loader), lambda loss: loss.backward())
    assert len(losses) == STEPS * ACCUMULATE
    assert analysis_of(run.run_dir).run.ended == "failed"


ENGINE = """
import sys
import deepspeed, deepspeed.comm.torch, torch
from effprof.callbacks.deepspeed import attach
from tests.support.tiny_huggingface import ACCUMULATE, ROWS, Rows, llama

deepspeed.comm.torch.build_shm_op = lambda: None  # else a shared-memory collective is compiled first
deepspeed.init_distributed(dist_backend="gloo")
model = llama()
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
    config={
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": ACCUMULATE,
        "zero_optimization": {"stage": int(sys.argv[2])},
        "zero_allow_untested_optimizer": True,
    },
)
run = attach(engine, run_dir=sys.argv[1], telemetry=False)
rows = Rows(ROWS * ACCUMULATE * int(sys.argv[3]))
for batch in run.watch(torch.utils.data.DataLoader(rows, batch_size=ROWS)):
    engine.backward(engine(**batch).loss)
    engine.step()
run.close()
"""


@pytest.mark.parametrize("stage", [0, 2])
def test_a_deepspeed_engine(stage: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    (tmp_path / "train.py").write_text(ENGINE)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "train.py", str(tmp_path / "run"), str(stage), str(STEPS)],
        cwd=tmp_path,
        env={**os.environ, **alone, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = analysis_of(str(tmp_path / "run"))
    assert found.run.framework == "deepspeed"
    assert found.efficiency.steps.total == STEPS
    assert found.efficiency.tokens_per_step == ROWS * ACCUMULATE * 16
    spec = from_hf_config(llama().config.to_dict())
    expected = flops_model(spec).conventions["6n"]["tokens"] * ROWS * ACCUMULATE * 16
    assert found.efficiency.conventions.six_n.flops_per_step == pytest.approx(expected, rel=1e-6)
    for name in ("step.input_wait", "step.forward", "step.backward", "step.optimizer"):
        assert found.account.lines[name] > 0, name
    assert found.run.config["strategy"] == f"zero-{stage}"


def test_a_model_that_is_compiled_is_measured_from_outside(tmp_path: Path) -> None:
    model = llama()
    optimizer, loader = objects(model)
    accelerator = Accelerator(cpu=True)
    compiled = torch.compile(model, backend="eager")
    wrapped, outer, batches = accelerator.prepare(compiled, optimizer, loader)
    with attach_accelerator(accelerator, wrapped, outer, run_dir=tmp_path / "run", telemetry=False) as run:
        for batch in run.watch(batches):
            accelerator.backward(wrapped(**batch).loss)
            outer.step()
            outer.zero_grad()
    found = analysis_of(run.run_dir)
    assert found.efficiency.steps.total == STEPS * ACCUMULATE
    assert found.efficiency.tokens_per_step == ROWS * KEPT
    assert found.efficiency.mfu.value is not None
