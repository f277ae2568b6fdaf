"""One small Lightning training with one known delay put into it; `attribution.py` starts it and reads what came of it.

    python benchmarks/attribution_training.py CASE FOLDER [steps]

What was really injected is timed around the delay itself and written to FOLDER/injected-RANK.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from effprof.callbacks import EfficiencyCallback

VOCABULARY, WIDTH, LENGTH, ROWS = 64, 32, 16, 4
EXPERTS, SKEW = 4, (0.55, 0.15, 0.15, 0.15)  # shares of the tokens that the skewed router sends to each expert
STOPPED_AT, SAVED_EVERY, UNFINISHED_S = 27, 10, 3.0
now = time.perf_counter


class Injection:
    """Delays, and how long they really took on this rank."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def sleep(self, seconds: float) -> None:
        """Wait, using no processor."""
        began = now()
        time.sleep(seconds)
        self.seconds += now() - began

    def work(self, seconds: float) -> None:
        """Keep the interpreter busy."""
        began = now()
        while now() - began < seconds:
            sum(range(100))
        self.seconds += now() - began


class Tokens(Dataset[Tensor]):
    """Rows of random tokens; fetching one may take `delay`."""

    def __init__(self, rows: int, delay: Callable[[], None] | None = None) -> None:
        self._ids = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
        self._delay = delay

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Tensor:
        if self._delay is not None and index % ROWS == 0:
            self._delay()
        return self._ids[index]


class Block(nn.Module):
    """Wide enough that running it again takes time that shows."""

    fixed: Tensor

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(depth)))
        self.register_buffer("fixed", torch.randn(width, width, generator=torch.Generator().manual_seed(0)) / width)
        self.runs = 0
        self.again_s = 0.0

    def forward(self, x: Tensor) -> Tensor:
        began = now()
        self.runs += 1
        try:
            with torch.no_grad():  # work that only forward has: what its second run costs is not made up for elsewhere
                noise = x
                for _ in range(60):
                    noise = torch.tanh(noise @ self.fixed)
            y: Tensor = self.layers(x + 1e-6 * noise)
            return y
        finally:  # the run in backward is left by an exception once it has made what is needed
            if self.runs % 2 == 0:
                self.again_s += now() - began


class Router(nn.Linear):
    """Sends fixed shares of the tokens to the experts."""

    def __init__(self, shares: tuple[float, ...]) -> None:
        super().__init__(WIDTH, EXPERTS, bias=False)
        self._shares = shares

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[0]
        edges = [round(sum(self._shares[: expert + 1]) * tokens) for expert in range(EXPERTS)]
        wanted = torch.bucketize(torch.arange(tokens), torch.tensor(edges), right=True)
        return super().forward(x) * 1e-3 + functional.one_hot(wanted, EXPERTS) * 10.0


class Experts(nn.Module):
    """Routed experts, half of them on each of two ranks: a rank works as long as its experts have tokens."""

    def __init__(self, shares: tuple[float, ...], injection: Injection, seconds_per_token: float) -> None:
        super().__init__()
        self.top_k = 1
        self.gate = Router(shares)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self._injection = injection
        self._seconds_per_token = seconds_per_token

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.gate(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(flat[rows]) * weights[rows, None])
        if self._seconds_per_token and not isinstance(chosen, torch._subclasses.FakeTensor):
            rank = int(os.environ.get("LOCAL_RANK", 0))
            own = int((chosen // (EXPERTS // 2) == rank).sum())
            # what this rank's experts take longer than an even share of the tokens would
            excess = own - flat.shape[0] // 2
            if excess > 0:
                self._injection.sleep(excess * self._seconds_per_token)
        return out.view_as(x)


class Net(pl.LightningModule):
    """Predicts tokens; what a case changes is done here or in a callback."""

    def __init__(self, case: str, injection: Injection, is_resumed: bool = False) -> None:
        super().__init__()
        self.case, self.injection, self.is_resumed = case, injection, is_resumed
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.block: Block | None = None
        self.moe: Experts | None = None
        if case.startswith("recompute"):
            self.block = Block(768, 6)
            self.up, self.down = nn.Linear(WIDTH, 768), nn.Linear(768, WIDTH)
        if case.startswith("router"):
            shares = SKEW if case == "router_skewed" else (1 / EXPERTS,) * EXPERTS
            self.moe = Experts(shares, injection, 0.006 if case == "router_skewed" else 0.0)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self._inner: Any = torch.compile(self._mix, backend=self._slow_backend) if "compile" in case else self._mix

    def _slow_backend(self, module: Any, _: Any) -> Any:
        if self.case == "compile":
            self.injection.sleep(8.0)
        return module.forward

    def _mix(self, x: Tensor) -> Tensor:
        return functional.gelu(x) + x

    def forward(self, ids: Tensor) -> Tensor:
        x = self._inner(self.embed(ids))
        if self.block is not None:
            wide = self.up(x)
            again = self.case == "recompute"
            wide = checkpoint(self.block, wide, use_reentrant=False) if again else self.block(wide)
            x = x + self.down(wide)
        if self.moe is not None:
            x = x + self.moe(x)
        y: Tensor = self.head(x)
        return y

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        if not isinstance(batch, torch._subclasses.FakeTensor):  # not in effprof's count on a copy
            if self.case == "busy_step":
                self.injection.work(0.03)
            if self.case == "slow_rank" and self.global_rank == 1:
                self.injection.sleep(0.1)
            if self.case.startswith(("killed", "crashed")):
                time.sleep(0.05)
            if self.case == "crashed" and self.trainer.global_step == STOPPED_AT and not self.is_resumed:
                time.sleep(UNFINISHED_S)
                raise RuntimeError("the device is lost")
        loss = functional.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        if self.case == "evaluation_sleep":
            self.injection.sleep(0.1)
        self.log("val", self(batch).mean())

    def transfer_batch_to_device(self, batch: Any, device: Any, index: int) -> Any:
        if self.case == "transfer_sleep" and self.trainer.training and not self.trainer.sanity_checking:
            self.injection.sleep(0.03)
        return super().transfer_batch_to_device(batch, device, index)

    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        if self.case == "checkpoint_sleep":
            self.injection.sleep(0.4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class BusyCallback(Callback):
    """A user's callback that takes long."""

    def __init__(self, injection: Injection) -> None:
        self._injection = injection

    def on_train_batch_start(self, *_: Any) -> None:
        self._injection.work(0.015)

    def on_train_batch_end(self, *_: Any) -> None:
        self._injection.work(0.015)


class SlowOptimizer(Callback):
    """Delays every optimizer step, inside the step itself."""

    def __init__(self, injection: Injection) -> None:
        self._injection = injection

    def on_train_start(self, trainer: Any, module: Any) -> None:
        trainer.optimizers[0].register_step_post_hook(lambda *_: self._injection.sleep(0.05))


class SlowLogger(CSVLogger):
    """A logger with a slow connection."""

    injection: Injection

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.injection.sleep(0.2)
        super().log_metrics(metrics, step)


class StampAndKill(Callback):
    """Writes each step's end to a file, and stops the process as a node failure would."""

    def __init__(self, folder: Path, is_killed: bool) -> None:
        self._file = os.open(folder / "stamps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._is_killed = is_killed

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        os.write(self._file, f"{trainer.global_step} {time.time()}\n".encode())
        if self._is_killed and trainer.global_step == STOPPED_AT:
            time.sleep(UNFINISHED_S)  # so that the record holds all steps
            os.kill(os.getpid(), signal.SIGKILL)


def train(case: str, folder: Path, steps: int, is_resumed: bool) -> None:
    """Run the training of `case`; its record goes to FOLDER/run."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    injection = Injection()
    ranks = 2 if case in ("slow_rank", "two_ranks") or case.startswith("router") else 1
    effprof = EfficiencyCallback(
        folder / "run",
        peak_tflops=0.1,
        telemetry=False,
        experts_every_n_steps=5,
        **({"kernel_window": True} if case.endswith("_window") else {}),
    )
    case = case.removesuffix("_window")
    callbacks: list[Any] = [effprof]
    if case == "busy_callback":
        callbacks = [BusyCallback(injection), effprof, BusyCallback(injection)]
    if case == "optimizer_sleep":
        callbacks.append(SlowOptimizer(injection))
    if case.startswith(("checkpoint", "killed", "crashed")):
        every = SAVED_EVERY if case in ("killed", "crashed") else steps // 4
        callbacks.append(ModelCheckpoint(folder / "saved", every_n_train_steps=every, save_top_k=-1, filename="{step}"))
    if case in ("killed", "crashed"):
        callbacks.append(StampAndKill(folder, case == "killed" and not is_resumed))
    logger: Any = False
    if case.startswith("logging"):
        logger = (SlowLogger if case == "logging_sleep" else CSVLogger)(folder)
        if case == "logging_sleep":
            logger.injection = injection
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=logger,
        log_every_n_steps=10,
        callbacks=callbacks,
        enable_checkpointing=case.startswith(("checkpoint", "killed", "crashed")),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=steps // 4,
        limit_val_batches=5 if case.startswith("evaluation") else 0,
        default_root_dir=folder,
        use_distributed_sampler=True,
    )
    net = Net(case, injection, is_resumed)
    fetch = (lambda: injection.sleep(0.03)) if case == "input_sleep" else None
    loader = DataLoader(Tokens(ROWS * steps * ranks, fetch), batch_size=ROWS)
    resumed = sorted((folder / "saved").glob("*.ckpt"))[-1] if is_resumed else None
    trainer.fit(net, loader, DataLoader(Tokens(20), batch_size=ROWS), ckpt_path=resumed)
    if case == "recompute" and net.block is not None:
        injection.seconds = net.block.again_s
    (folder / f"injected-{trainer.global_rank}.json").write_text(json.dumps(injection.seconds))


if __name__ == "__main__":
    chosen, directory = sys.argv[1], Path(sys.argv[2])
    train(chosen, directory, int(sys.argv[3]) if len(sys.argv) > 3 else 40, is_resumed="resume" in sys.argv[4:])
