"""A small byte-level GPT as a LightningModule, dense or mixture-of-experts, and the text it learns from.

Both variants do the same arithmetic per token: the dense one has a feed-forward layer of 4 x width, the MoE one
`experts` feed-forward layers of 4 x width / `top_k`, of which every token visits `top_k`.
"""

from __future__ import annotations

import math
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import IterableDataset

VOCABULARY = 256  # bytes
BALANCE_WEIGHT = 0.02  # enough to keep the experts evenly loaded, little beside a loss of a few nats


@dataclass(frozen=True)
class GPTConfig:
    """Shape of the model; `experts=0` is the dense one."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 256
    experts: int = 0
    top_k: int = 2


class Attention(nn.Module):
    """Causal self-attention through PyTorch's fused kernel."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Router(nn.Module):
    """Sends each token to its `top_k` experts.

    effprof finds it by its class's name, its `top_k` and its `num_experts`, and reads the expert indices among its
    outputs. One that it doesn't find is named: `EfficiencyCallback(routers={"model.blocks.*.mlp.switch": "indices"})`.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.num_experts = config.experts
        self.gate = nn.Linear(config.width, config.experts, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (tokens, experts), weights (tokens, top_k) that sum to 1, expert indices (tokens, top_k)."""
        probabilities = self.gate(x).float().softmax(-1)
        weights, experts = probabilities.topk(self.top_k, dim=-1)
        return probabilities, weights / weights.sum(-1, keepdim=True), experts


class MixtureOfExperts(nn.Module):
    """Experts behind a router, with a fixed number of slots per expert.

    Every expert has tokens x top_k / experts slots, so the experts together compute exactly the active experts' share
    and no shape depends on the data: the layer compiles, and it can be counted without running it. A token that finds
    its expert full skips it (the residual connection carries it on); `dropped_share` says how many did.
    """

    dropped_share: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.experts = config.experts
        self.top_k = config.top_k
        hidden = 4 * config.width // config.top_k
        self.router = Router(config)
        self.up = nn.Parameter(torch.empty(config.experts, config.width, hidden))
        self.down = nn.Parameter(torch.empty(config.experts, hidden, config.width))
        self.register_buffer("dropped_share", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the shape of `x`, and the load-balancing loss of Switch Transformer (arXiv:2101.03961, eq. 4)."""
        tokens = x.reshape(-1, x.shape[-1])
        probabilities, weights, experts = self.router(tokens)

        # all first choices come before all second choices, so that second choices are dropped first
        expert = experts.T.reshape(-1)
        token = torch.arange(len(tokens), device=x.device).repeat(self.top_k)
        chosen = (expert[:, None] == torch.arange(self.experts, device=x.device)).long()
        place = (chosen.cumsum(0) * chosen).sum(-1) - 1
        slots = math.ceil(len(expert) / self.experts)
        fits = place < slots
        slot = torch.where(fits, expert * slots + place, self.experts * slots)  # the last row is a bin
        self.dropped_share = 1 - fits.float().mean().detach()

        width = tokens.shape[-1]
        inbox = tokens.new_zeros(self.experts * slots + 1, width).index_copy(0, slot, tokens[token])
        hidden = F.gelu(torch.bmm(inbox[:-1].view(self.experts, slots, width), self.up.to(x.dtype)))
        outbox = torch.bmm(hidden, self.down.to(x.dtype)).view(-1, width)
        outbox = torch.cat([outbox, outbox.new_zeros(1, width)])
        weighted = outbox[slot] * weights.T.reshape(-1, 1).to(x.dtype)
        y = tokens.new_zeros(tokens.shape).index_add(0, token, weighted.to(tokens.dtype))

        share = chosen.float().mean(0)
        balance = self.experts * (share * probabilities.mean(0)).sum()
        return y.view_as(x), balance


class Block(nn.Module):
    """Attention, then a feed-forward layer or experts, each with a residual connection."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = MixtureOfExperts(config) if config.experts else FeedForward(config.width, 4 * config.width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.attention(self.attention_norm(x))
        y = self.mlp(self.mlp_norm(x))
        y, balance = y if isinstance(y, tuple) else (y, x.new_zeros(()))
        return x + y, balance


class GPT(nn.Module):
    """Bytes in, loss of predicting the next ones out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(VOCABULARY, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of `labels` (batch, length) given `input_ids` (batch, length), in nats per byte.

        While training, an MoE's load-balancing loss is part of it.
        """
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        balances = []
        for block in self.blocks:
            x, balance = block(x)
            balances.append(balance)
        logits = self.head(self.norm(x))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return loss + BALANCE_WEIGHT * torch.stack(balances).mean() if self.training else loss

    def count_parameters(self) -> tuple[int, int]:
        """All parameters, and those that one token uses."""
        total = sum(p.numel() for p in self.parameters())
        layers = [m for m in self.modules() if isinstance(m, MixtureOfExperts)]
        idle = sum((m.up.numel() + m.down.numel()) * (m.experts - m.top_k) // m.experts for m in layers)
        return total, total - idle


class LitGPT(pl.LightningModule):
    """Next-byte prediction with AdamW."""

    def __init__(self, config: GPTConfig, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.model = GPT(config)
        self.learning_rate = learning_rate

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(**batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch), prog_bar=True, batch_size=len(batch["input_ids"]))

    def on_train_epoch_end(self) -> None:
        """Report the tokens that found no free slot in the last step."""
        layers = [m for m in self.modules() if isinstance(m, MixtureOfExperts)]
        if layers:
            self.log("dropped_share", torch.stack([m.dropped_share for m in layers]).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)


def read_standard_library(limit_bytes: int = 16_000_000) -> Tensor:
    """The Python sources that come with every Python, as one uint8 tensor of at most `limit_bytes`."""
    root = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts or "tests" in path.parts:
            continue
        text += path.read_bytes()
        if len(text) >= limit_bytes:
            break
    if not text:
        raise SystemExit(f"no Python sources under {root}: this Python ships without its standard library's text")
    return torch.frombuffer(text[:limit_bytes], dtype=torch.uint8)


class Windows(IterableDataset[dict[str, Tensor]]):
    """Windows of `length` bytes at random places of `text` and the bytes that follow them, `count` of them or no end.

    The order depends on `seed` alone, so that two models see the same text.
    """

    def __init__(self, text: Tensor, length: int, seed: int, count: int | None = None) -> None:
        self.text = text
        self.length = length
        self.seed = seed
        self.count = count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        places = random.Random(self.seed)
        served = 0
        while self.count is None or served < self.count:
            start = places.randrange(len(self.text) - self.length)
            window = self.text[start : start + self.length + 1].long()
            yield {"input_ids": window[:-1], "labels": window[1:]}
            served += 1
