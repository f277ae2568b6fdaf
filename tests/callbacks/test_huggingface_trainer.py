"""The callback in real transformers Trainers: dense and mixture of experts, and every duty between steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from effprof.analysis.analyze import analyze
from effprof.analysis.model import Analysis
from effprof.callbacks.huggingface import EfficiencyCallback
from effprof.runlog.reader import open_run
from effprof.workload.architecture import from_hf_config
from effprof.workload.flops import flops_model
from tests.support.tiny_huggingface import ACCUMULATE, ROWS, Rows, llama, mixtral

STEPS = 8


def trained(model: Any, folder: Path, callbacks: list[Any] | None = None, **settings: Any) -> EfficiencyCallback | None:
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": ACCUMULATE,
        "max_steps": STEPS,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
        **settings,
    }
    callback = EfficiencyCallback() if callbacks is None else None
    Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=Rows(),
        eval_dataset=torch.utils.data.Subset(Rows(), range(16)),
        callbacks=callbacks if callback is None else [callback],
    ).train()
    return callback


def analysis_of(callback: EfficiencyCallback | None) -> Analysis:
    assert callback is not None
    assert callback.run_dir is not None
    return analyze(open_run(callback.run_dir))


@pytest.mark.parametrize("make", [llama, mixtral])
def test_steps_tokens_flops_and_duties(make: Any, tmp_path: Path) -> None:
    model = make()
    found = analysis_of(trained(model, tmp_path))
    assert found.run.framework == "transformers"
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
    for name in ("step.input_wait", "step.forward", "step.backward", "step.optimizer", "evaluation", "checkpoint"):
        assert lines[name] > 0, name
    assert sum(lines.values()) == pytest.approx(found.account.wall_s, rel=1e-6)
    assert lines["unattributed"] < 0.05 * found.account.wall_s
    assert found.run.config["accumulate"] == ACCUMULATE
    assert (found.moe is not None) == (make is mixtral)


def test_the_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    plain, measured = llama(), llama()
    trained(plain, tmp_path / "plain", callbacks=[])
    trained(measured, tmp_path / "measured")
    for one, other in zip(plain.state_dict().values(), measured.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_loss_on_record_is_the_trainer_s_own(tmp_path: Path) -> None:
    told: list[float] = []

    class Listens(EfficiencyCallback):
        def on_log(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
            super().on_log(args, state, control, **objects)
            told.extend(entry["loss"] for entry in [state.log_history[-1]] if "loss" in entry)

    callback = Listens()
    trained(llama(), tmp_path, callbacks=[callback], logging_steps=1)
    recorded = open_run(str(callback.run_dir)).attempts[0].ranks[0].columns["loss"]
    assert len(told) == STEPS
    assert recorded == pytest.approx(told, rel=1e-4)


def test_mixed_precision_is_recorded(tmp_path: Path) -> None:
    found = analysis_of(trained(llama(), tmp_path, bf16=True))
    assert found.run.config["precision"] == "bf16-mixed"
    assert found.efficiency.mfu.dtype in ("bf16", "mixed")


def test_a_training_that_fails_is_not_completed(tmp_path: Path) -> None:
    class Breaks(EfficiencyCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
            super().on_step_end(args, state, control, **objects)
            if state.global_step == 3 and "again" not in args.output_dir:
                raise RuntimeError("out of coffee")

    callback = Breaks()
    with pytest.raises(RuntimeError, match="out of coffee"):
        trained(llama(), tmp_path, callbacks=[callback])
    first = callback.run_dir
    assert first is not None
    # another training closes what an exception left open
    trained(llama(), tmp_path / "again", callbacks=[callback])
    assert analyze(open_run(first)).run.ended != "completed"
