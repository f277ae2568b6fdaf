"""Remembers where the tensors that are counted lie in a batch, so that only the first batch of a kind is searched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from effprof.workload.batch import MASK_KEYS, MAX_DEPTH, TokenTensors, find_tokens, is_integer, is_tensor, tensors_of

DOCUMENT_KEYS = ("document_ids", "doc_ids", "document_id", "seq_idx", "sequence_ids", "segment_ids")
CUMULATIVE_KEYS = ("cu_seq_lens_q", "cu_seqlens_q", "cu_seqlens", "cu_seq_lens")
LENGTH_KEYS = ("seq_lens", "seq_lengths", "sequence_lengths", "lengths", "input_lengths")
PADDING_KEYS = ("key_padding_mask", "src_key_padding_mask")
BLOCK_KEYS = (*MASK_KEYS, "attn_mask", "mask")

Fields = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Keys that lead from a batch to its fields, and the sizes of the containers passed on the way.

    A later batch has the same layout if each container on the way has the same type and number of entries.
    """

    way: tuple[tuple[Any, Any, int], ...]  # key into the container, its type, its size
    kind: Any
    size: int
    keys: tuple[tuple[str, Any], ...]  # field name, key in the last container

    def fetch(self, batch: Any) -> Fields | None:
        """The fields of `batch`, or None if it is built differently."""
        node: Any = batch
        if self.kind is None:  # a bare tensor of ids
            return {"ids": batch} if hasattr(batch, "dtype") and len(batch.shape) == 2 and is_integer(batch) else None
        try:
            for key, kind, size in self.way:
                if type(node) is not kind or len(node) != size:
                    return None
                node = node[key]
            if type(node) is not self.kind or len(node) != self.size:
                return None
            return {field: node[key] for field, key in self.keys}
        except (KeyError, IndexError, TypeError):
            return None


def find_fields(batch: Any) -> tuple[Fields, Layout | None]:
    """The tensors of `batch` that its tokens are counted from, by field, and where they lie.

    Fields: those of `TokenTensors`, and `documents` (B, T) document numbers, `cumulative` document boundaries,
    `lengths` of documents, `padding` (true where padded), `block` mask (…, T, T), `opaque` mask (an object that can't
    be counted), `loss_mask` (B, T). A batch without tokens has one field at most, `first`, its first tensor.

    Returns:
        The fields and their layout, which is None where batches of this kind have to be searched anew.
    """
    tokens = find_tokens(batch)
    if tokens is None:
        first = next((tensor for tensor in tensors_of(batch) if len(tensor.shape) > 0), None)
        return ({}, None) if first is None else _with_layout(batch, first, {"first": first}, {})
    fields = {name: value for name, value in _known_fields(tokens) if value is not None}
    main = tokens.ids if tokens.ids is not None else tokens.embeddings
    container = _container_of(batch, main)
    extra = dict(_extra_fields(container, tokens)) if isinstance(container, Mapping) else {}
    fields.update({field: value for field, (_, value) in extra.items()})
    return _with_layout(batch, main, fields, {field: key for field, (key, _) in extra.items()})


def _with_layout(batch: Any, main: Any, fields: Fields, known: dict[str, Any]) -> tuple[Fields, Layout | None]:
    if batch is main:
        return fields, Layout((), None, 0, ()) if tuple(fields) == ("ids",) else None
    way = _way_to(batch, main)
    if not way:
        return fields, None
    container = way[-1][1]
    entries = list(_entries(container))
    if any(entry is None for _, entry in entries):  # what is absent today may be there tomorrow
        return fields, None
    keys = dict(known)
    for field, value in fields.items():
        key = next((key for key, entry in entries if entry is value), None)
        if key is not None:
            keys.setdefault(field, key)
    if len(keys) < len(fields):  # a field that lies elsewhere in the batch
        return fields, None
    steps = tuple((key, type(node), len(node)) for key, node in way[:-1])
    return fields, Layout(steps, type(container), len(container), tuple(keys.items()))


def _known_fields(tokens: TokenTensors) -> Iterator[tuple[str, Any]]:
    for name in ("ids", "embeddings", "attention_mask", "labels", "position_ids", "decoder_ids", "decoder_mask"):
        yield name, getattr(tokens, name)


def _extra_fields(named: Mapping[str, Any], tokens: TokenTensors) -> Iterator[tuple[str, tuple[str, Any]]]:
    shape = tokens.shape
    for field, names, accepts in (
        ("documents", DOCUMENT_KEYS, lambda value: is_integer(value) and _is_grid(value, shape)),
        ("cumulative", CUMULATIVE_KEYS, lambda value: is_integer(value) and value.shape[-1] > 1),
        ("padding", PADDING_KEYS, lambda value: _is_grid(value, shape)),
        ("block", BLOCK_KEYS, lambda value: _is_block(value, shape)),
        ("loss_mask", ("loss_mask",), lambda value: _is_grid(value, shape)),
    ):
        for name in names:
            value = named.get(name)
            if is_tensor(value) and accepts(value):
                yield field, (name, value)
                break
    for name in MASK_KEYS:
        value = named.get(name)
        if value is not None and not is_tensor(value):
            yield "opaque", (name, value)
            break
    for name in LENGTH_KEYS:
        value = named.get(name)
        if _are_lengths(value):
            yield "lengths", (name, value)
            break


def _is_grid(value: Any, shape: tuple[int, int]) -> bool:
    return tuple(value.shape) == shape or (len(value.shape) == 1 and shape == (1, value.shape[0]))


def _is_block(value: Any, shape: tuple[int, int]) -> bool:
    columns = shape[1]
    return len(value.shape) >= 3 and tuple(value.shape[-2:]) == (columns, columns)


def _are_lengths(value: Any) -> bool:
    if is_tensor(value):
        return is_integer(value) and len(value.shape) in (1, 2)
    if isinstance(value, (list, tuple)) and value:
        return all(type(item) is int or (is_tensor(item) and is_integer(item)) for item in value)
    return False


def _entries(container: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(container, Mapping):
        yield from container.items()
    elif isinstance(container, (list, tuple)):
        yield from enumerate(container)


def _container_of(batch: Any, tensor: Any) -> Any:
    """The container that holds `tensor`; of an object its attributes."""
    way = _way_to(batch, tensor)
    if way:
        return way[-1][1]
    return vars(batch) if hasattr(batch, "__dict__") and not is_tensor(batch) else None


def _way_to(batch: Any, tensor: Any) -> list[tuple[Any, Any]] | None:
    """(key, container) pairs from `batch` down to `tensor`; None where something else than containers is passed."""

    def search(node: Any, depth: int) -> list[tuple[Any, Any]] | None:
        if depth > MAX_DEPTH:
            return None
        for key, value in _entries(node):
            if value is tensor:
                return [(key, node)]
            if not is_tensor(value) and (rest := search(value, depth + 1)):
                return [(key, node), *rest]
        return None

    return search(batch, 0)
