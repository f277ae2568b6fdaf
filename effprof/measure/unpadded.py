"""The short way for the commonest batch: ids, a mask that is 1 throughout, and labels of the same shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from effprof.measure.batch_layout import Fields
from effprof.measure.token_facts import Counts, Rules

if TYPE_CHECKING:
    import torch

_KEYS = frozenset(("ids", "attention_mask", "labels"))
_NEEDED = frozenset(("ids", "attention_mask"))
_MAX_SHAPES = 64
# A mask of ones is kept per shape to compare with; larger ones are not worth their memory.
_MAX_ELEMENTS = 1 << 20


class UnpaddedBatches:
    """Answers for batches without padding from one comparison of their mask with ones.

    Learns a shape's counts from the first such batch that was counted in full. Labels are counted each time.
    """

    def __init__(self, rules: Rules) -> None:
        self._ignore_index = rules.ignore_index
        self._is_applicable = not rules.encoder_decoder
        self._known: dict[Any, tuple[torch.Tensor, Counts]] = {}

    def counts(self, fields: Fields) -> Counts | None:
        """Counts of a host batch, None where it has to be counted in full."""
        if not self._known or not _NEEDED <= fields.keys() <= _KEYS:
            return None
        mask = fields["attention_mask"]
        known = self._known.get((fields["ids"].shape, mask.dtype))
        if known is None:
            return None
        ones, counts = known
        labels = fields.get("labels")
        if not mask.equal(ones):
            return None
        if labels is None:
            return counts
        if labels.shape != ones.shape or labels.dtype != fields["ids"].dtype:
            return None
        return {**counts, "loss_tokens": int(np.count_nonzero(labels.numpy() != self._ignore_index))}

    def learn(self, fields: Fields, counts: Counts) -> None:
        """Remember what a batch was counted to, where it is one of these."""
        if not self._is_applicable or not _NEEDED <= fields.keys() <= _KEYS or len(self._known) >= _MAX_SHAPES:
            return
        ids, mask = fields["ids"], fields["attention_mask"]
        if not hasattr(mask, "new_ones") or mask.shape != ids.shape or len(ids.shape) != 2:
            return
        key = (ids.shape, mask.dtype)
        if key in self._known or mask.numel() > _MAX_ELEMENTS or counts.get("tokens") != mask.numel():
            return
        ones = mask.new_ones(mask.shape)
        if mask.equal(ones):  # one that numbers its documents has no zero either
            self._known[key] = ones, {name: value for name, value in counts.items() if name != "loss_tokens"}
