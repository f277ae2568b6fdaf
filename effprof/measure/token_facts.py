"""From a batch's tensors to facts, from facts to counts: the same arithmetic for host tensors and for device tensors.

Facts are small arrays that the counts follow from: which positions are real, which are labelled, where documents
begin. Of host tensors they are views; on a device they are made there, a byte or two a position, and copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from effprof.measure.batch_layout import Fields
from effprof.measure.documents import (
    Array,
    Integers,
    attended_pairs,
    changes,
    is_document_padding,
    lengths_between,
    restarts,
    row_tokens,
)

Counts = dict[str, int]  # counter → count; a counter that could not be counted is absent
Facts = dict[str, Any]

_ONLY_SHAPE = frozenset({"ids", "embeddings", "opaque"})
_DOCUMENTED = frozenset({"attention_mask", "padding", "documents", "cumulative", "lengths", "block", "opaque"})
# An additive mask's blocked entries are -inf or the dtype's minimum; a bias such as ALiBi stays far above this.
_BLOCKED_BELOW = -1000.0


@dataclass(frozen=True)
class Rules:
    """How the model attends and what the batch's special numbers mean; see `TokenCounter`."""

    window: int | None = None
    causal: bool | None = None
    ignore_index: int = -100
    pad_id: int | None = None
    encoder_decoder: bool | None = None


class Shape(NamedTuple):
    """(B, T) of the model or its encoder, (B, T') of the decoder or -1, whether an uncountable mask is there."""

    rows: int
    columns: int
    target_rows: int = -1
    target_columns: int = -1
    is_opaque: bool = False


def shape_of(fields: Fields, rules: Rules) -> Shape:
    """The shape of a batch that holds tokens."""
    ids = fields.get("ids")
    sizes = fields["embeddings"].shape[:2] if ids is None else ids.shape
    columns = sizes[-1]
    rows = sizes[0] if len(sizes) == 2 else 1 if len(sizes) == 1 else int(np.prod(sizes[:-1]))
    if len(fields) == 1:
        return Shape(rows, columns)
    target = None if rules.encoder_decoder is False else fields.get("decoder_ids")
    labels = fields.get("labels")
    if target is None and labels is not None and len(labels.shape) == 2:
        is_guess = rules.encoder_decoder is None and not rules.causal
        if rules.encoder_decoder or (is_guess and labels.shape[1] != columns):
            target = labels
    if target is None:
        return Shape(rows, columns, is_opaque="opaque" in fields)
    return Shape(rows, columns, target.shape[0], target.shape[1], "opaque" in fields)


def needs_no_values(fields: Fields) -> bool:
    """Whether the counts follow from the shape alone."""
    return fields.keys() <= _ONLY_SHAPE


def host_facts(fields: Fields, rules: Rules, inspect: bool) -> Facts:
    """Facts of a batch on the host, read in place. `inspect` adds those that only warnings are made from."""
    facts: Facts = {}
    if "attention_mask" in fields:
        facts["mask"] = _grid(fields["attention_mask"])
    elif "padding" in fields:
        facts["mask"] = _grid(fields["padding"]) == 0
    if "loss_mask" in fields:
        facts["labelled"] = _grid(fields["loss_mask"]) != 0
    elif "labels" in fields and _is_per_position(fields):
        facts["labelled"] = _grid(fields["labels"]) != rules.ignore_index
    if "decoder_mask" in fields:
        facts["decoder_mask"] = _grid(fields["decoder_mask"])
    if _reads_positions(fields, inspect):
        facts["breaks"] = restarts(_grid(fields["position_ids"]))
    if "documents" in fields:
        facts["numbers"] = _grid(fields["documents"])
    for name in ("cumulative", "lengths"):
        if name in fields:
            facts[name] = _flat(fields[name])
    if "block" in fields:
        facts.update({name: value.numpy() for name, value in _block_facts(fields["block"], rules).items()})
    if _reads_tail(fields, rules, inspect):
        facts["tail"] = _grid(fields["ids"])[:, -2:]
    return facts


def device_facts(fields: Fields, rules: Rules, inspect: bool) -> dict[str, Any]:
    """The same facts as tensors on the batch's device, small enough to copy. Launches a kernel or two each."""
    import torch

    facts: dict[str, torch.Tensor] = {}
    if "attention_mask" in fields:
        mask = _grid_tensor(fields["attention_mask"])
        # more than a bit: a mask may number its documents
        facts["mask"] = mask if mask.dtype == torch.bool else (mask != 0 if mask.is_floating_point() else mask.short())
    elif "padding" in fields:
        facts["mask"] = _grid_tensor(fields["padding"]) == 0
    if "loss_mask" in fields:
        facts["labelled"] = _grid_tensor(fields["loss_mask"]) != 0
    elif "labels" in fields and _is_per_position(fields):
        facts["labelled"] = _grid_tensor(fields["labels"]) != rules.ignore_index
    if "decoder_mask" in fields:
        facts["decoder_mask"] = _grid_tensor(fields["decoder_mask"]) != 0
    if _reads_positions(fields, inspect):
        position_ids = fields["position_ids"].reshape(-1)
        facts["breaks"] = position_ids[1:] - position_ids[:-1] != 1
    if "documents" in fields:
        facts["numbers"] = _grid_tensor(fields["documents"]).int()
    for name in ("cumulative", "lengths"):
        if name in fields:
            value = fields[name]
            if isinstance(value, (list, tuple)):
                value = torch.cat([torch.as_tensor(item).reshape(-1) for item in value])
            facts[name] = value.reshape(-1)
    if "block" in fields:
        facts.update(_block_facts(fields["block"], rules))
    if _reads_tail(fields, rules, inspect):
        facts["tail"] = _grid_tensor(fields["ids"])[:, -2:]
    return facts


def count_facts(
    shape: Shape, facts: Facts, rules: Rules, cache: dict[Shape, Counts], warnings: dict[str, str]
) -> Counts:
    """Counts of one micro-batch.

    Args:
        cache: answers for batches without padding, by shape; filled here.
        warnings: code → message; added to here.
    """
    if shape.target_rows >= 0:
        return _count_encoder_decoder(shape, facts)
    lengths = _document_lengths(shape, facts, warnings)
    if lengths is None:
        counts = cache.get(shape)
        if counts is None:
            if len(cache) > 4096:  # every batch has a length of its own
                cache.clear()
            rows = np.full(shape.rows, shape.columns, dtype=np.int64)
            counts = cache[shape] = _counts_of_lengths(shape, rows, rules)
    else:
        counts = _counts_of_lengths(shape, lengths, rules)
    if shape.is_opaque and "pairs" in counts:
        warnings.setdefault("mask_not_counted", "the attention mask is no tensor: attended pairs are not counted")
        counts = {name: value for name, value in counts.items() if name not in ("pairs", "window_pairs")}
    if "block_pairs" in facts:
        counts = {**counts, "pairs": int(facts["block_pairs"])}
        if "block_window_pairs" in facts:
            counts["window_pairs"] = int(facts["block_window_pairs"])
    if "tail" in facts and (facts["tail"] == rules.pad_id).all(axis=1).any():
        warnings.setdefault(
            "padding_without_mask",
            f"rows end in the pad id {rules.pad_id} but the batch has no attention_mask: padding counts as tokens",
        )
    if "labelled" in facts:
        counts = {**counts, "loss_tokens": int(np.count_nonzero(facts["labelled"]))}
    return counts


def _counts_of_lengths(shape: Shape, lengths: Integers, rules: Rules) -> Counts:
    tokens = int(lengths.sum())
    counts = {
        "samples": shape.rows,
        "positions": shape.rows * shape.columns,
        "tokens": tokens,
        "square_pairs": tokens * shape.columns,
    }
    if rules.causal is not None:
        counts["pairs"] = attended_pairs(lengths, rules.causal)
        if rules.window is not None:
            counts["window_pairs"] = attended_pairs(lengths, rules.causal, rules.window)
    return counts


def _document_lengths(shape: Shape, facts: Facts, warnings: dict[str, str]) -> Integers | None:
    """Tokens of each document, or None where every row is one document without padding."""
    positions = shape.rows * shape.columns
    mask = _fitting(facts.get("mask"), shape)
    if "block_real" in facts:
        return row_tokens(facts["block_real"])
    real_count = positions if mask is None else int(np.count_nonzero(mask))
    given = _given_lengths(facts)
    # lengths that don't add up to the tokens mean something else (characters, the length before truncation)
    if given is not None and (int(given.sum()) == real_count or (mask is None and int(given.sum()) <= positions)):
        return given
    if "numbers" in facts:
        numbers = facts["numbers"]
        padding = is_document_padding(numbers) if mask is None else mask == 0
        return lengths_between(changes(numbers), shape.columns, None if padding is None else ~padding)
    restarted = _restarted_lengths(shape, facts["breaks"]) if "breaks" in facts else None
    if mask is not None:
        if restarted is not None:
            warnings.setdefault(
                "documents_ignored",
                "position_ids restart but an attention_mask is given: transformers then attends across documents, "
                "and the pairs are counted so",
            )
        return _masked_lengths(mask, real_count)
    return restarted


def _restarted_lengths(shape: Shape, breaks: Array) -> Integers | None:
    """Lengths of the documents that position ids (B, T) or (1, T) tell apart; None where each row is one."""
    rows = (breaks.size + 1) // shape.columns
    lengths = lengths_between(breaks, shape.columns)
    if len(lengths) == rows:
        return None
    return np.tile(lengths, shape.rows) if rows == 1 and shape.rows > 1 else lengths


def _masked_lengths(mask: Array, real_count: int) -> Integers | None:
    if real_count == mask.size and (mask.dtype == np.bool_ or int(np.add.reduce(mask, axis=None)) == mask.size):
        return None
    sums = row_tokens(mask)
    if mask.dtype.kind not in "iu" or int(sums.sum()) == real_count:
        return sums
    return lengths_between(changes(mask), mask.shape[1], mask != 0)  # the mask numbers its documents


def _given_lengths(facts: Facts) -> Integers | None:
    lengths = np.diff(facts["cumulative"]) if "cumulative" in facts else facts.get("lengths")
    if lengths is None:
        return None
    positive: Integers = lengths[lengths > 0].astype(np.int64)
    return positive


def _fitting(mask: Array | None, shape: Shape) -> Array | None:
    """The mask's part over the batch's own positions; a longer one also covers a prefix. None where it can't be one."""
    if mask is None or mask.shape[0] != shape.rows or mask.shape[1] < shape.columns:
        return None
    return mask if mask.shape[1] == shape.columns else mask[:, mask.shape[1] - shape.columns :]


def _count_encoder_decoder(shape: Shape, facts: Facts) -> Counts:
    mask = _fitting(facts.get("mask"), shape)
    source = np.full(shape.rows, shape.columns, dtype=np.int64) if mask is None else row_tokens(mask != 0)
    target_real = facts.get("decoder_mask")
    if target_real is None:
        labelled = facts.get("labelled")
        is_same = labelled is not None and labelled.shape == (shape.target_rows, shape.target_columns)
        target_real = labelled if is_same else None
    if target_real is None:
        target = np.full(shape.target_rows, shape.target_columns, dtype=np.int64)
    else:
        target = row_tokens(target_real)
    source_tokens, target_tokens = int(source.sum()), int(target.sum())
    counts = {
        "samples": shape.rows,
        "positions": shape.rows * shape.columns + shape.target_rows * shape.target_columns,
        "tokens": source_tokens + target_tokens,
        "source_tokens": source_tokens,
        "target_tokens": target_tokens,
        "pairs": attended_pairs(target, causal=True),
        "square_pairs": target_tokens * shape.target_columns,
        "source_pairs": attended_pairs(source, causal=False),
        "source_square_pairs": source_tokens * shape.columns,
    }
    if len(source) == len(target):
        counts["cross_pairs"] = int((source * target).sum())
    if "labelled" in facts:
        counts["loss_tokens"] = int(np.count_nonzero(facts["labelled"]))
    return counts


def _block_facts(mask: Any, rules: Rules) -> dict[str, Any]:
    """Facts of a mask (B, T, T) or (B, heads, T, T): boolean or integer true where attended, float 0 where attended.

    A position is real where it attends to itself; a padded query's row is left out.
    """
    import torch

    grid = mask[:, 0] if mask.dim() == 4 else mask
    allowed = grid > _BLOCKED_BELOW if grid.is_floating_point() else grid != 0
    real = torch.diagonal(allowed, dim1=-2, dim2=-1)
    allowed = allowed & real.unsqueeze(-1)
    facts = {"block_real": real, "block_pairs": allowed.sum()}
    if rules.window is not None:
        at = torch.arange(grid.shape[-1], device=grid.device)
        distance = at[:, None] - at[None, :]
        near = distance < rules.window if rules.causal else distance.abs() <= rules.window // 2
        facts["block_window_pairs"] = (allowed & near).sum()
    return facts


def _is_per_position(fields: Fields) -> bool:
    main = fields.get("ids")
    return len(fields["labels"].shape) == (2 if main is None else len(main.shape))


def _reads_positions(fields: Fields, inspect: bool) -> bool:
    """Position ids tell documents apart only without a padding mask; next to one they are worth a warning."""
    position_ids = fields.get("position_ids")
    if position_ids is None or len(position_ids.shape) > 2 or fields.keys() & {"cumulative", "documents", "block"}:
        return False
    return inspect or "attention_mask" not in fields


def _reads_tail(fields: Fields, rules: Rules, inspect: bool) -> bool:
    return inspect and rules.pad_id is not None and "ids" in fields and not fields.keys() & _DOCUMENTED


def _as_array(value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return value
    try:
        array: Array = value.numpy()
    except (TypeError, RuntimeError):  # a dtype numpy has not, or a tensor that wants a gradient
        array = value.detach().float().numpy()
    return array


def _grid(value: Any) -> Array:
    array = _as_array(value)
    return array if array.ndim == 2 else array.reshape(-1, array.shape[-1])


def _grid_tensor(value: Any) -> Any:
    return value if value.dim() == 2 else value.reshape(-1, value.shape[-1])


def _flat(value: Any) -> Array:
    if isinstance(value, (list, tuple)):
        return np.concatenate([np.atleast_1d(item if isinstance(item, int) else _as_array(item)) for item in value])
    return _as_array(value).reshape(-1)
