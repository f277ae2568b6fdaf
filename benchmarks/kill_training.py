"""The training that benchmarks/kill.py kills: small, fast, and witness to its own steps."""

from __future__ import annotations

import argparse
import os
import time

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from effprof.callbacks import EfficiencyCallback


class Net(pl.LightningModule):
    """Two linear layers; a step takes about a millisecond."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Witness(pl.Callback):
    """Writes every step's number and end to a file, unbuffered."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        os.write(self._file, f"{trainer.global_step} {time.monotonic_ns()}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir")
    parser.add_argument("stamps")
    parser.add_argument("--no-telemetry", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=-1,
        max_time={"seconds": 60},
        callbacks=[
            EfficiencyCallback(run_dir=options.run_dir, telemetry=not options.no_telemetry),
            Witness(options.stamps),
        ],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), torch.utils.data.DataLoader(torch.randn(4096, 64), batch_size=16))


if __name__ == "__main__":
    main()
