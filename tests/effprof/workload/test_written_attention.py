"""Attention with masks given as tensors, or written out in products: the pairs that the mask leaves are counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from effprof.workload.operations import OperationCount, count_training_step

torch.set_num_threads(1)
B, T, H, D = 2, 16, 4, 8
PROJECTION = 2 * 2 * B * T * H * D * 3 * H * D
CAUSAL = T * (T + 1) // 2
WINDOW = 4 * 5 // 2 + (T - 4) * 4


class Attention(nn.Module):
    """Projects, attends as `how` says, and keeps the masks that people keep."""

    def __init__(self, how: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.how = how
        self.qkv = nn.Linear(H * D, 3 * H * D, bias=False)
        self.register_buffer("bias", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))
        self.future = torch.triu(torch.ones(64, 64), 1).bool()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
        return self.how(self, q, k, v)


def count(module: nn.Module, **options: Any) -> OperationCount:
    return count_training_step(module, torch.empty(B, T, H * D), step=lambda m, x: m(x).float().sum(), **options)


def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1)) * (1 / math.sqrt(D))


def tensor_mask(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(T, T, dtype=torch.bool).tril())


def added_mask(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.triu(torch.full((T, T), float("-inf")), 1))


def mask_filled_in_place(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    mask = torch.zeros(T, T)
    mask.masked_fill_(self.future[:T, :T], float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def window_mask(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    i = torch.arange(T, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(i[:, None] >= i) & (i[:, None] - i < 4))


def filled(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    masked = scores(q, k).masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
    return self.dropout(F.softmax(masked, dim=-1)) @ v  # type: ignore[no-any-return]


def added(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    masked = scores(q, k) + torch.triu(torch.full((T, T), float("-inf")), 1)
    return masked.softmax(-1) @ v  # type: ignore[no-any-return]


def chosen(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    lowest = torch.finfo(q.dtype).min
    masked = torch.where(self.bias[:, :, :T, :T] > 0, scores(q, k), lowest)
    return F.softmax(masked, dim=-1, dtype=torch.float32).type_as(v) @ v


def assigned(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    masked = scores(q, k)
    masked[self.future[:T, :T].expand(B, H, T, T)] = float("-inf")
    return masked.softmax(-1) @ v


def in_einsum(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    masked = torch.einsum("bhqd,bhkd->bhqk", q, k).masked_fill(self.future[:T, :T], -1e9)
    return torch.einsum("bhqk,bhkd->bqhd", masked.softmax(-1), v)


def flattened(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    q, k, v = (each.reshape(B * H, T, D) for each in (q, k, v))
    masked = torch.baddbmm(torch.zeros(B * H, 1, T), q, k.transpose(1, 2)).view(B, H, T, T)
    masked = masked.masked_fill(self.future[:T, :T], float("-inf"))
    return torch.bmm(masked.softmax(-1).view(B * H, T, T), v)


def all_pairs(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
    return scores(q, k).softmax(-1) @ v


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize(
    ("how", "pairs", "window"),
    [
        (tensor_mask, CAUSAL, None),
        (added_mask, CAUSAL, None),
        (mask_filled_in_place, CAUSAL, None),
        (window_mask, WINDOW, 4),
        (filled, CAUSAL, None),
        (added, CAUSAL, None),
        (chosen, CAUSAL, None),
        (assigned, CAUSAL, None),
        (in_einsum, CAUSAL, None),
        (flattened, CAUSAL, None),
        (all_pairs, T * T, None),
    ],
)
def test_pairs_follow_from_the_mask(how: Any, pairs: int, window: int | None, autocast: bool) -> None:
    options = {"context": lambda: torch.autocast("cpu", torch.bfloat16)} if autocast else {}
    counted = count(Attention(how), **options)
    assert counted.attention_flops == 3 * 2 * B * H * pairs * 2 * D
    assert counted.flops == counted.attention_flops + PROJECTION
    assert [(shape.pairs, shape.window) for shape in counted.attention] == [(pairs, window)]
    assert sum(counted.by_dtype.values()) == counted.flops
    assert set(counted.by_dtype) == {"bf16" if autocast else "fp32"}
    assert counted.assumptions == ()


def test_a_mask_made_of_data_is_said_to_be_taken_for_full() -> None:
    def how(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=q.sum((0, 1, 3))[:, None] > k.sum((0, 1, 3)))

    def written(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
        return scores(q, k).masked_fill(q.sum((0, 1, 3))[:, None] > 0, float("-inf")).softmax(-1) @ v

    for each in (how, written):
        counted = count(Attention(each))
        assert counted.attention_flops == 3 * 2 * B * H * T * T * 2 * D
        assert any("mask given as a tensor" in line for line in counted.assumptions)


def test_a_view_that_is_written_to_makes_the_mask_unknown() -> None:
    def how(self: Attention, q: Any, k: Any, v: Any) -> torch.Tensor:
        mask = torch.ones(T, T, dtype=torch.bool).tril()
        mask[:, 0].copy_(q.sum((0, 1, 3)) > 0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    counted = count(Attention(how))
    assert any("mask given as a tensor" in line for line in counted.assumptions)


@pytest.mark.parametrize("reentrant", [True, False])
def test_written_attention_under_checkpointing(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.inner = Attention(filled)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = checkpoint(self.inner, x * self.scale, use_reentrant=reentrant)
            return out

    counted = count(Checkpointed())
    attention = 2 * B * H * CAUSAL * 2 * D
    assert counted.attention_flops == 3 * attention
    assert counted.flops == 3 * attention + 3 * PROJECTION // 2
    # the device multiplies all pairs; without reentrance torch stops before the product whose result nobody needs
    products = 2 if reentrant else 1
    assert counted.recompute_flops == PROJECTION // 2 + products * 2 * B * H * T * T * D


@pytest.mark.parametrize("hint", [{"is_causal": True}, {}])
def test_transformer_encoder_of_torch_with_a_causal_mask(hint: dict[str, bool]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(H * D, H * D)
            layer = nn.TransformerEncoderLayer(H * D, H, 64, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(T)
            return self.encoder(self.first(x), mask=mask, **hint)  # type: ignore[no-any-return]

    counted = count(Model())
    assert counted.attention_flops == 2 * 3 * 2 * B * H * CAUSAL * 2 * D


def test_decoder_layer_of_torch_attends_to_its_memory() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(H * D, H * D)
            self.layer = nn.TransformerDecoderLayer(H * D, H, 64, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            mask = nn.Transformer.generate_square_subsequent_mask(T)
            return self.layer(x, x[:, :5], tgt_mask=mask, tgt_is_causal=True)  # type: ignore[no-any-return]

    counted = count(Model())
    assert sorted(shape.pairs for shape in counted.attention) == [T * 5, CAUSAL]
