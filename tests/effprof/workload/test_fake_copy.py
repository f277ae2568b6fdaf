"""Counting inside a real Lightning run: user code of many kinds survives, and training comes out bit-identical."""

from __future__ import annotations

import logging
import random
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from effprof.workload.detect import detect

pl = pytest.importorskip("pytorch_lightning", reason="runs Lightning's Trainer")
torch.set_num_threads(1)
ROWS, LENGTH, VOCABULARY = 4, 8, 64
FLOPS = 3 * 2 * ROWS * LENGTH * (16 * 32 + 32 * VOCABULARY)


class Module(pl.LightningModule):  # type: ignore[misc]
    """Embedding and two linear layers; subclasses do in `training_step` what users do."""

    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module = nn.Sequential(
            nn.Embedding(VOCABULARY, 16), nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, VOCABULARY)
        )
        self.seen = 0
        self.history: list[Any] = []

    def loss(self, batch: Any) -> torch.Tensor:
        self.seen += batch[0].numel()
        return F.cross_entropy(self.net(batch[0]).flatten(0, 1), batch[1].flatten())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters())


class Reads(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.history.append(loss.item())
        if loss > 100:
            loss = loss * 0
        if not torch.isfinite(loss):
            return None
        return {"loss": loss, "extra": loss.detach()}


class Metric(Module):
    def __init__(self) -> None:
        super().__init__()
        torchmetrics = pytest.importorskip("torchmetrics")
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=VOCABULARY)
        self.all = torchmetrics.MetricCollection({"f1": torchmetrics.F1Score("multiclass", num_classes=VOCABULARY)})

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(batch[0]).flatten(0, 1)
        self.accuracy(logits, batch[1].flatten())
        self.log("accuracy", self.accuracy)
        self.log_dict(self.all(logits, batch[1].flatten()))
        return F.cross_entropy(logits, batch[1].flatten())


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.clip_gradients(optimizer, gradient_clip_val=1.0)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        if scheduler is not None:
            scheduler.step()
        self.log("lr", optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]


class AsksTheTrainer(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        if self.trainer.is_global_zero and self.global_step > 10**6:
            loss = loss * self.trainer.max_steps
        self.trainer.strategy.barrier()
        if self.logger is not None:
            self.logger.log_metrics({"loss": 1.0}, step=self.trainer.global_step)
        self.print("step", self.current_epoch)
        return loss


class Hooked(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net[1].register_forward_hook(lambda *values: self.history.append(values[-1].sum()))
        self.lock = threading.Lock()
        self.last: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with self.lock:
            self.last = self.loss(batch)
        return self.last


class Draws(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch) * (1 + random.random() + np.random.rand() + torch.rand(()))


class Compiled(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="aot_eager")  # type: ignore[assignment]


class Iterates(Module):
    def training_step(self, dataloader_iter: Iterator[Any]) -> Any:
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)


class Watch(pl.Callback):  # type: ignore[misc]
    """Detects at the first batch, as the product's callback does."""

    def __init__(self) -> None:
        self.facts: Any = None
        self.seen: int | None = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self.facts is None:
            _, self.facts = detect(module, batch)
            self.seen = module.seen


def fit(kind: type[Module], callback: Any) -> tuple[list[torch.Tensor], Module]:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    generator = torch.Generator().manual_seed(1)
    rows = [tuple(torch.randint(0, VOCABULARY, (LENGTH,), generator=generator) for _ in range(2)) for _ in range(16)]
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    module = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(
            max_steps=3,
            callbacks=[] if callback is None else [callback],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        ).fit(module, torch.utils.data.DataLoader(rows, batch_size=ROWS))
    return [parameter.detach().clone() for parameter in module.parameters()], module


@pytest.mark.parametrize("kind", [Module, Reads, Metric, Manual, AsksTheTrainer, Hooked, Draws, Compiled])
def test_training_is_bit_identical_and_counted(kind: type[Module]) -> None:
    watch = Watch()
    counted, module = fit(kind, watch)
    plain, other = fit(kind, None)
    assert watch.facts.source == "operation_count", watch.facts.reason
    assert watch.facts.counts["operation_count"] == FLOPS
    assert watch.seen == 0
    assert module.seen == other.seen
    assert len(module.history) == len(other.history)
    assert all(torch.equal(one, two) for one, two in zip(counted, plain, strict=True))


def test_a_step_that_takes_the_iterator() -> None:
    batch = tuple(torch.zeros(ROWS, LENGTH, dtype=torch.long) for _ in range(2))
    _, facts = detect(Iterates(), batch)
    assert facts.counts["operation_count"] == FLOPS


def test_large_data_on_the_module_is_not_copied() -> None:
    class Holder(Module):
        def __init__(self) -> None:
            super().__init__()
            self.array = np.zeros(4 << 20)
            self.texts = ["text"] * 200_000

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.array is array
            self.texts.append("more")
            return self.loss(batch)

    module = Holder()
    array = module.array
    _, facts = detect(module, tuple(torch.zeros(ROWS, LENGTH, dtype=torch.long) for _ in range(2)))
    assert facts.counts["operation_count"] == FLOPS
    assert len(module.texts) == 200_000
