"""The short way for batches without padding gives what the long way gives, and leaves every other batch to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from effprof.measure import unpadded
from effprof.measure.tokens import TokenCounter

IDS = torch.arange(5, 37).reshape(4, 8)
ONES = torch.ones_like(IDS)
PADDED = ONES.clone()
PADDED[1, 5:] = 0
NUMBERED = ONES.clone()
NUMBERED[:, 4:] = 2
LABELS = IDS.masked_fill(IDS % 3 == 0, -100)

BATCHES: dict[str, dict[str, Any]] = {
    "mask": {"input_ids": IDS, "attention_mask": ONES},
    "mask and labels": {"input_ids": IDS, "attention_mask": ONES, "labels": LABELS},
    "other labels": {"input_ids": IDS, "attention_mask": ONES, "labels": IDS},
    "boolean mask": {"input_ids": IDS, "attention_mask": ONES.bool(), "labels": LABELS},
    "padding": {"input_ids": IDS, "attention_mask": PADDED, "labels": LABELS},
    "numbered documents": {"input_ids": IDS, "attention_mask": NUMBERED, "labels": LABELS},
    "another shape": {"input_ids": IDS[:2], "attention_mask": ONES[:2], "labels": LABELS[:2]},
    "class labels": {"input_ids": IDS, "attention_mask": ONES, "labels": torch.tensor([1, 0, 1, 1])},
    "positions": {"input_ids": IDS, "attention_mask": ONES, "position_ids": torch.arange(8).expand(4, 8)},
    "a longer mask": {"input_ids": IDS[:, :6], "attention_mask": ONES, "labels": LABELS[:, :6]},
}


def counted(batches: list[dict[str, Any]], **rules: Any) -> list[dict[str, int]]:
    counter = TokenCounter(**{"causal": True, "window": 3, "pad_id": 0, **rules})
    return [dict(counter.count(batch)) for batch in batches]


@pytest.mark.parametrize("encoder_decoder", [None, False, True])
def test_every_batch_counts_as_it_does_alone(encoder_decoder: bool | None) -> None:
    batches = [*BATCHES.values()] * 3
    alone = [counted([batch], encoder_decoder=encoder_decoder)[0] for batch in batches]
    assert counted(batches, encoder_decoder=encoder_decoder) == alone


def test_the_short_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = TokenCounter(causal=True)
    first = counter.count(BATCHES["mask and labels"])
    monkeypatch.setattr("effprof.measure.tokens.host_facts", pytest.fail)
    assert counter.count(BATCHES["mask and labels"]) == first
    assert counter.count(BATCHES["other labels"])["loss_tokens"] == 32


def test_a_mask_changed_in_place_is_seen() -> None:
    mask = torch.ones_like(IDS)
    counter = TokenCounter(causal=True)
    batch = {"input_ids": IDS, "attention_mask": mask}
    assert [counter.count(batch)["tokens"] for _ in range(2)] == [32, 32]
    mask[0, 3:] = 0
    assert counter.count(batch)["tokens"] == 27


def test_shapes_without_end_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpadded, "_MAX_SHAPES", 3)
    counter = TokenCounter(causal=True)
    for columns in range(1, 9):
        ids = IDS[:, :columns]
        assert counter.count({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["tokens"] == 4 * columns
    assert len(counter._unpadded._known) == 3
