"""Small models and data for trainings in tests; deterministic from a seed."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional

VOCABULARY, WIDTH, LENGTH, ROWS = 64, 32, 16, 4
# forward + backward, hand count: two Linears of WIDTH x WIDTH and WIDTH x VOCABULARY per token; the first one's
# input comes from a trained embedding, so all three parts (2x forward, 2x input, 2x weight) are computed
FLOPS_PER_TOKEN = 3 * 2 * (WIDTH * WIDTH + WIDTH * VOCABULARY)


def token_loader(batches: int, rows: int = ROWS, length: int = LENGTH, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (batches * rows, length + 1), generator=generator)
    data = torch.utils.data.TensorDataset(ids[:, :-1].clone(), ids[:, 1:].clone())
    return torch.utils.data.DataLoader(data, batch_size=rows)


class Tiny(pl.LightningModule):
    """Token model with dropout, so that a random number drawn out of turn would change the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, VOCABULARY)
        )

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        ids, labels = batch
        loss = functional.cross_entropy(self.net(ids).flatten(0, 1), labels.flatten())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        ids, labels = batch
        self.log("val_loss", functional.cross_entropy(self.net(ids).flatten(0, 1), labels.flatten()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Gan(pl.LightningModule):
    """Manual optimisation with two optimizers: one pass of the loop steps both."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(8, 16), nn.Linear(16, 1)

    def training_step(self, batch: Any, index: int) -> None:
        (noise,) = batch
        first, second = self.optimizers()
        loss = self.discriminator(self.generator(noise)).square().mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        loss = (self.discriminator(self.generator(noise).detach()) - 1).square().mean()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.generator.parameters(), lr=0.1),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.1),
        ]


def trainer(directory: Any, callbacks: list[Any], **settings: Any) -> pl.Trainer:
    """A quiet CPU Trainer."""
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(directory),
        "callbacks": callbacks,
        **settings,
    }
    return pl.Trainer(**settings)
