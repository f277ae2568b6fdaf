"""Which tensor of a batch is taken for the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from effprof.workload.batch import find_samples, find_tokens

IDS = torch.randint(2, 50, (3, 8))
LABELS = torch.randint(2, 50, (3, 8))
MASK = torch.ones(3, 8, dtype=torch.long)


def test_names_of_a_mapping_win_over_order() -> None:
    found = find_tokens({"labels": LABELS, "attention_mask": MASK, "input_ids": IDS, "position_ids": IDS})
    assert found is not None
    assert found.ids is IDS
    assert found.labels is LABELS
    assert found.attention_mask is MASK
    assert found.position_ids is IDS
    assert (found.shape, found.positions, found.where) == ((3, 8), 24, "input_ids")


@pytest.mark.parametrize("container", [tuple, list])
def test_of_two_equal_tensors_the_first_is_the_input(container: Any) -> None:
    found = find_tokens(container([IDS, LABELS]))
    assert found is not None
    assert found.ids is IDS
    assert found.labels is LABELS
    assert found.attention_mask is None


def test_a_pair_whose_second_holds_zeros_and_ones_is_still_labels() -> None:
    found = find_tokens((IDS, MASK))
    assert found is not None
    assert found.labels is MASK
    assert found.attention_mask is None


@pytest.mark.parametrize("labels", [LABELS, torch.zeros(3, dtype=torch.long)])
def test_a_mask_between_ids_and_labels_is_recognised(labels: torch.Tensor) -> None:
    found = find_tokens((IDS, MASK, labels))
    assert found is not None
    assert found.attention_mask is MASK
    assert found.labels is (labels if labels.dim() == 2 else None)


def test_boolean_tensor_next_to_ids_is_a_mask() -> None:
    mask = MASK.bool()
    found = find_tokens((IDS, mask))
    assert found is not None
    assert found.attention_mask is mask


def test_encoder_decoder_targets_come_from_decoder_ids_else_labels() -> None:
    decoder = torch.zeros(3, 5, dtype=torch.long)
    by_name = find_tokens({"input_ids": IDS, "labels": torch.zeros(3, 6, dtype=torch.long)})
    assert by_name is not None
    assert by_name.target_shape() == (3, 6)
    both = find_tokens({"input_ids": IDS, "labels": LABELS, "decoder_input_ids": decoder})
    assert both is not None
    assert both.target_shape() == (3, 5)
    by_order = find_tokens((IDS, decoder))
    assert by_order is not None
    assert by_order.target_shape() == (3, 5)


def test_embeddings_stand_in_for_ids() -> None:
    found = find_tokens({"inputs_embeds": torch.zeros(2, 7, 4)})
    assert found is not None
    assert found.ids is None
    assert found.positions == 14


def test_packed_one_dimensional_ids_are_one_sequence() -> None:
    found = find_tokens({"input_ids": torch.zeros(11, dtype=torch.long)})
    assert found is not None
    assert found.shape == (1, 11)


def test_nested_dataclass_and_named_tuple() -> None:
    @dataclass
    class Item:
        input_ids: torch.Tensor
        weight: float = 1.0

    class Pair(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    for batch in (
        {"loader": {"input_ids": IDS}},
        [Item(IDS), "name"],
        Item(IDS),
        Pair(IDS, LABELS),
        ({"tokens": IDS}, 3),
    ):
        found = find_tokens(batch)
        assert found is not None
        assert found.ids is IDS


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(4, 3, 8, 8),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)),
        {"pixel_values": torch.zeros(4, 3, 8, 8)},
    ],
)
def test_images_have_samples_but_no_tokens(batch: Any) -> None:
    assert find_tokens(batch) is None
    assert find_samples(batch) == 4


def test_numpy_and_nothing() -> None:
    found = find_tokens({"input_ids": np.zeros((2, 5), dtype=np.int64)})
    assert found is not None
    assert found.positions == 10
    assert find_tokens(None) is None
    assert find_samples([]) is None
