"""Small trainings that are configured badly in one way each, for `effprof recommend`, `verify` and `tune` to find out.

    python examples/badly_configured.py starved_loader --steps 100
    effprof tune --budget 5m -- python examples/badly_configured.py starved_loader

`--good` takes the fault out; `--seed` makes another training of the same kind.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from effprof.callbacks.lightning import EfficiencyCallback

VOCABULARY = 512
TOKENS = 64
SAMPLES_PER_STEP = 16
FETCH_S = 0.004


class Text(Dataset[dict[str, torch.Tensor]]):
    """Token sequences that a model can learn: each counts upwards from a random start, by a random step."""

    def __init__(self, seed: int, padded: bool, fetch_s: float) -> None:
        self._seed, self._padded, self._fetch_s = seed, padded, fetch_s

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self._fetch_s:
            time.sleep(self._fetch_s)  # a file on a slow disk
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        start, step = torch.randint(1, VOCABULARY, (2,), generator=draw).tolist()
        ids = (start + (1 + step % 7) * torch.arange(TOKENS)) % VOCABULARY
        length = 6 + int(torch.randint(0, 12, (1,), generator=draw)) if self._padded else TOKENS
        mask = (torch.arange(TOKENS) < length).long()
        return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


class Model(pl.LightningModule):
    """A random Llama or Mixtral."""

    def __init__(self, case: str, is_good: bool, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": 256 if case == "float32" else 128,  # casts eat what narrower products gain
            "intermediate_size": 512 if case == "float32" else 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": TOKENS,
        }
        if case == "skewed_moe":
            config = MixtralConfig(**sizes, num_local_experts=8, num_experts_per_tok=2)
            self.net: Any = MixtralForCausalLM(config)
            if not is_good:
                self.net.set_experts_implementation("eager")
                self._skew()
        else:
            self.net = LlamaForCausalLM(LlamaConfig(**sizes))
        if case == "full_recompute" and not is_good:
            self.net.gradient_checkpointing_enable()

    def _skew(self) -> None:
        """Lets the routers prefer one expert, as they do without a balancing loss."""
        for name, weight in self.net.named_parameters():
            if name.endswith(("gate.weight", "router.weight")):
                weight.data[0] *= 8.0

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(**batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


class SyncEveryStep(Callback):
    """Writes each step's loss to disk and waits until it is there."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self._file.write(f"{float(outputs['loss'])} {sum(float(p.norm()) for p in module.parameters())}\n")
        self._file.flush()
        os.fsync(self._file.fileno())


CASES = (
    "tiny_micro_batches",
    "float32",
    "starved_loader",
    "synchronising_loop",
    "full_recompute",
    "padding",
    "skewed_moe",
)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--good", action="store_true", help="without the fault")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path.cwd())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    case, is_bad = given.case, not given.good
    accumulate = SAMPLES_PER_STEP if case == "tiny_micro_batches" and is_bad else 1
    fetch_s = FETCH_S if case == "starved_loader" else 0.0
    workers = 2 if case == "starved_loader" and not is_bad else 0
    loader = DataLoader(
        Text(given.seed, case == "padding" and is_bad, fetch_s),
        batch_size=SAMPLES_PER_STEP // accumulate,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    is_synchronising = case == "synchronising_loop" and is_bad
    callbacks: list[Callback] = [EfficiencyCallback()]
    if is_synchronising:
        callbacks.append(SyncEveryStep(given.root / "losses.txt"))
    trainer = pl.Trainer(
        max_steps=given.steps,
        precision="bf16-mixed" if case == "float32" and given.good else "32-true",
        accelerator="cpu",
        accumulate_grad_batches=accumulate,
        callbacks=callbacks,
        detect_anomaly=is_synchronising,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=given.root,
    )
    trainer.fit(Model(case, given.good, given.seed), loader)


if __name__ == "__main__":
    main()
