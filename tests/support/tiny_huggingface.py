"""Small random models of transformers and rows with padding, for trainings in tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

WIDTH = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
ROWS, LENGTH, ACCUMULATE = 4, 24, 2
KEPT = 16  # tokens of a row that are no padding


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sixteen kept tokens and eight of padding in every row."""

    def __init__(self, rows: int = 256) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(index, index + LENGTH) % 90 + 1
        mask = (torch.arange(LENGTH) < KEPT).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**WIDTH))


def mixtral() -> Any:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**WIDTH, num_local_experts=4, num_experts_per_tok=2))
