"""A Lightning training whose times are known: it sleeps where others compute, for trials that are started as processes.

python sleeping_training.py --step-s 0.02 --fetch-s 0 --workers 0 [--alone] [--log-fetches]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import time

import pytorch_lightning as pl
import torch

from effprof.callbacks.lightning import EfficiencyCallback

parser = argparse.ArgumentParser()
parser.add_argument("--step-s", type=float, default=0.02)
parser.add_argument("--fetch-s", type=float, default=0.0, help="of each of a batch's two samples")
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--alone", action="store_true", help="fail beside another one in the same directory")
parser.add_argument("--log-fetches", action="store_true", help="write when each sample was fetched to fetched-PID")
given = parser.parse_args()
if given.alone:
    held = os.open("lock", os.O_CREAT | os.O_WRONLY)
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Rows(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(given.fetch_s)
        if given.log_fetches:
            with open(f"fetched-{os.getpid()}", "a") as file:
                file.write(f"{time.monotonic()}\n")
        return torch.ones(4)


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        time.sleep(given.step_s)
        loss: torch.Tensor = self.net(batch).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


trainer = pl.Trainer(
    max_steps=100_000,
    accelerator="cpu",
    callbacks=[EfficiencyCallback()],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), torch.utils.data.DataLoader(Rows(), batch_size=2, num_workers=given.workers))
