"""Memory in real Lightning trainings: predicted at the first batch, tracked when asked, told when it ran out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from effprof.analysis.analyze import analyze
from effprof.callbacks import EfficiencyCallback
from effprof.runlog.reader import open_run
from tests.support.tiny_lightning import Tiny, token_loader, trainer

pl = pytest.importorskip("pytorch_lightning")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(attention: str = "sdpa") -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
    )
    config._attn_implementation = attention

    class Model(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.LlamaForCausalLM(config)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            ids, _ = batch
            loss: torch.Tensor = self.model(input_ids=ids, labels=ids).loss
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return Model()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_both_predictions_of_a_whole_step_meet_the_tracked_one(tmp_path: Path, precision: str, accumulate: int) -> None:
    callback = EfficiencyCallback(run_dir=tmp_path / "run", telemetry=False, track_memory=True)
    settings = {"precision": precision, "accumulate_grad_batches": accumulate, "max_steps": 4}
    trainer(tmp_path, [callback], **settings).fit(llama(), token_loader(8, rows=4, length=64))
    memory = analyze(open_run(str(tmp_path / "run"))).memory
    assert memory.tracked_bytes is not None
    form, copy = memory.predictions
    assert (form.source, copy.source) == ("closed_form", "fake_copy")
    assert copy.ratio == pytest.approx(1, abs=0.05)
    assert form.ratio == pytest.approx(1, abs=0.05)
    assert memory.account is not None
    assert memory.account.basis == "tracker"
    assert sum(memory.account.lines.values()) == memory.account.peak_bytes


def test_running_out_of_memory_ends_the_log_with_the_account(tmp_path: Path) -> None:
    class Greedy(Tiny):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if index == 2:
                torch.empty(1 << 50, dtype=torch.uint8)
            return super().training_step(batch, index)

    callback = EfficiencyCallback(run_dir=tmp_path / "run", telemetry=False)
    with pytest.raises(RuntimeError, match="allocate"):
        trainer(tmp_path, [callback], max_steps=4).fit(Greedy(), token_loader(4))
    analysis = analyze(open_run(str(tmp_path / "run")))
    assert analysis.run.ended == "failed"
    failure = analysis.memory.out_of_memory
    assert failure is not None
    assert failure.requested_bytes == 1 << 50
    model = analysis.run.model
    assert failure.states_bytes == sum(model[f"{name}_bytes"] for name in ("parameters", "gradients", "optimizer"))
