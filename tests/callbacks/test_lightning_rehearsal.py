"""Rehearsed loaders: a trial times its own loader with and without workers, beside the model."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from effprof.advise.rehearsal import Rehearsed, read_rehearsed
from effprof.advise.trial import run_trial

SCRIPT = """
import sys, time
import torch
import pytorch_lightning as pl
from effprof.callbacks.lightning import EfficiencyCallback

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        time.sleep(float(sys.argv[1]))
        return torch.ones(4)

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        time.sleep(0.04)
        return self.net(batch).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

trainer = pl.Trainer(max_steps=100_000, accelerator="cpu", callbacks=[EfficiencyCallback()], logger=False,
                     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Model(), torch.utils.data.DataLoader(Rows(), batch_size=2, num_workers=int(sys.argv[2])))
"""


def rehearse(folder: Path, sleep_s: float, own_workers: int = 0) -> Rehearsed:
    """What a trial makes of two workers."""
    (folder / "train.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "train.py"), str(sleep_s), str(own_workers)]
    wanted = {"num_workers": 2, "persistent_workers": True}
    trial = run_trial(command, {}, folder / "trial", seconds=0.5, rehearse=[wanted], rehearse_s=2.0)
    assert trial.outcome == "ok", trial.reason
    (found,) = read_rehearsed(folder / "trial")
    return found


def test_workers_take_the_loading_away(tmp_path: Path) -> None:
    found = rehearse(tmp_path, 0.02)
    assert found.ratio == pytest.approx(40 / 80, abs=0.08), found  # 2 x 20 ms of loading before 40 ms of the model
    assert found.own_s == pytest.approx(0.08, abs=0.02)
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())
    ]


@pytest.mark.parametrize(
    ("sleep_s", "own_workers", "said"), [(0.1, 0, "would lag behind the model"), (0.02, 1, "load ahead already")]
)
def test_what_a_moment_cannot_show_is_refused(tmp_path: Path, sleep_s: float, own_workers: int, said: str) -> None:
    found = rehearse(tmp_path, sleep_s, own_workers)
    assert found.ratio is None
    assert said in found.reason
