"""Experts in a loop over data: counted with even shares whose sum is exact, refused where nothing is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from effprof.workload.detect import detect

torch.set_num_threads(1)
VOCABULARY, WIDTH, EXPERTS, CHOSEN = 64, 32, 4, 2
ROWS, LENGTH = 2, 19  # 38 tokens: no multiple of the number of experts


class Experts(nn.Module):
    def __init__(self, run: Callable[..., None], *, chooses_one: bool) -> None:
        super().__init__()
        self.run, self.chooses_one = run, chooses_one
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH, bias=False))
            for _ in range(EXPERTS)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, 1)
        scores = self.gate(tokens).softmax(-1)
        weights, chosen = scores.max(-1) if self.chooses_one else scores.topk(CHOSEN, -1)
        out = torch.zeros_like(tokens)
        self.run(self.experts, tokens, weights, chosen, out)
        return out.view_as(x)


class Model(nn.Module):
    def __init__(self, run: Callable[..., None], *, chooses_one: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.moe = Experts(run, chooses_one=chooses_one)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.head(self.moe(self.embed(batch[0]))).flatten(0, 1), batch[1].flatten())


def by_nonzero(experts: Any, x: Any, weights: Any, chosen: Any, out: Any) -> None:
    for number, expert in enumerate(experts):
        rows = (chosen == number).nonzero()[:, 0]
        out.index_add_(0, rows, expert(x[rows]) * weights[rows, None])


def by_where(experts: Any, x: Any, weights: Any, chosen: Any, out: Any) -> None:
    for number, expert in enumerate(experts):
        rows, slot = torch.where(chosen == number)
        if rows.numel() == 0:
            continue
        out.index_add_(0, rows, expert(x[rows]) * weights[rows, slot, None])


def by_one_hot(experts: Any, x: Any, weights: Any, chosen: Any, out: Any) -> None:
    mask = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
    for number in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        slot, rows = torch.where(mask[number].squeeze(0))
        out.index_add_(0, rows, experts[int(number)](x[rows]) * weights[rows, slot, None])


def by_mask(experts: Any, x: Any, weights: Any, chosen: Any, out: Any) -> None:
    for number, expert in enumerate(experts):
        mask = (chosen == number).any(-1)
        if mask.any():
            out[mask] += expert(x[mask]) * weights[mask].sum(-1, keepdim=True)


def by_counts(experts: Any, x: Any, weights: Any, chosen: Any, out: Any) -> None:
    counts = torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
    for number, expert in enumerate(experts):
        if counts[number] == 0:
            continue
        rows, slot = torch.where(chosen == number)
        out[rows] += expert(x[rows]) * weights[rows, slot, None]


@pytest.mark.parametrize(
    ("run", "chosen"), [(by_nonzero, 1), (by_where, 2), (by_one_hot, 2), (by_mask, 2), (by_counts, 2)]
)
def test_experts_add_up_to_the_active_share(run: Callable[..., None], chosen: int) -> None:
    module = Model(run, chooses_one=chosen == 1)
    batch = tuple(torch.randint(0, VOCABULARY, (ROWS, LENGTH)) for _ in range(2))
    model, facts = detect(module, batch)
    assert model is not None, facts.reason
    expert = 4 * WIDTH * WIDTH
    assert model.conventions["exact"] == {"tokens": 6 * (WIDTH * VOCABULARY + WIDTH * EXPERTS + chosen * expert)}
    assert any("shared evenly among experts" in line for line in facts.assumptions)
    total = sum(each.numel() for each in module.parameters())
    assert model.conventions["6n"]["tokens"] == 6 * (total - (EXPERTS - chosen) * expert)


def test_sizes_that_are_not_a_matter_of_routing_stay_refused() -> None:
    def run(experts: Any, x: Any, weights: Any, chosen: Any, out: Any) -> None:
        rows = (x.sum(-1) > 0).nonzero()[:, 0]
        out.index_add_(0, rows, experts[0](x[rows]))

    batch = tuple(torch.randint(0, VOCABULARY, (ROWS, LENGTH)) for _ in range(2))
    model, facts = detect(Model(run), batch)
    assert model is None
    assert "depends on the data" in facts.reason
