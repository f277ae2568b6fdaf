"""A Hugging Face model inside a LightningModule: effprof reads its config and counts everything by itself.

    python examples/huggingface_in_lightning.py --model mixtral

The weights are random and the model is tiny, so nothing is downloaded; a real model differs in its config alone.
"""

from __future__ import annotations

import argparse

import pytorch_lightning as pl
import torch
from gpt import Windows, read_standard_library
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from effprof.callbacks import EfficiencyCallback

SHAPE = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def build(name: str) -> PreTrainedModel:
    """A tiny Llama, or a Mixtral whose two active experts together are as wide as Llama's feed-forward layer."""
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(intermediate_size=384, **SHAPE))
    return MixtralForCausalLM(MixtralConfig(intermediate_size=192, num_local_experts=8, num_experts_per_tok=2, **SHAPE))


class LanguageModel(pl.LightningModule):
    """What a LightningModule around a Hugging Face model usually looks like."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = build(name)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(**batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class SameForLabels(Windows):
    """Hugging Face models shift the labels themselves."""

    def __iter__(self):
        for window in super().__iter__():
            yield {"input_ids": window["input_ids"], "labels": window["input_ids"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("llama", "mixtral"), default="llama")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--run-dir", help="where effprof records (default: effprof_runs/<id>)")
    options = parser.parse_args()
    pl.seed_everything(1)
    trainer = pl.Trainer(
        max_steps=options.steps,
        devices=1,
        callbacks=[EfficiencyCallback(run_dir=options.run_dir)],
        logger=False,
        enable_checkpointing=False,
    )
    text = read_standard_library(4_000_000)
    trainer.fit(LanguageModel(options.model), DataLoader(SameForLabels(text, 256, seed=1), batch_size=8))


if __name__ == "__main__":
    main()
