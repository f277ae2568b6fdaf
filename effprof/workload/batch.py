"""Which tensors of a batch are the tokens: one answer, shared by the FLOPs count and by the token count.

Tensors are recognised by their `shape` and `dtype`, so this room needs no torch, and fake tensors, NumPy arrays and
device tensors all pass. No value is read, except that a tuple's third integer tensor on the host is looked at to
tell an attention mask from labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

ID_KEYS = ("input_ids", "token_ids", "tokens", "input_tokens", "ids", "inputs", "input", "idx", "x", "src")
MASK_KEYS = ("attention_mask", "input_mask")
LABEL_KEYS = ("labels", "label", "targets", "target", "y", "tgt")
EMBEDDING_KEYS = ("inputs_embeds", "input_embeds")
MAX_DEPTH = 4


@dataclass(frozen=True)
class TokenTensors:
    """The tensors of one micro-batch that its tokens are counted from; None where the batch has none.

    Attributes:
        ids: integer (B, T) token ids of the model, or of the encoder; None with `embeddings`.
        attention_mask: (B, T), nonzero where a position is not padding.
        labels: integer (B, T'), the positions a loss is computed for.
        position_ids: integer (B, T); a restart at 0 marks a new packed document.
        decoder_ids: integer (B, T'), the decoder's input of an encoder-decoder where the batch names it.
        decoder_mask: (B, T'), like `attention_mask`, for the decoder.
        embeddings: float (B, T, h) given in place of ids.
        where: how the ids were found, for a message ("input_ids", "item 0").
    """

    ids: Any = None
    attention_mask: Any = None
    labels: Any = None
    position_ids: Any = None
    decoder_ids: Any = None
    decoder_mask: Any = None
    embeddings: Any = None
    where: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T) of the positions that the model, or its encoder, computes. One sequence where ids have one dim."""
        if self.ids is not None:
            return _rows_and_columns(self.ids.shape)
        return int(self.embeddings.shape[0]), int(self.embeddings.shape[1])

    @property
    def positions(self) -> int:
        """Number of positions the model, or its encoder, computes."""
        rows, columns = self.shape
        return rows * columns

    def target_shape(self) -> tuple[int, int] | None:
        """(B, T') of an encoder-decoder's decoder: its ids, else the labels that they are shifted from."""
        source = self.decoder_ids if self.decoder_ids is not None else self.labels
        return None if source is None or len(source.shape) != 2 else _rows_and_columns(source.shape)


def find_tokens(batch: Any) -> TokenTensors | None:
    """The token tensors of `batch`, or None where it holds no integer ids and no embeddings (images, say).

    Args:
        batch: a mapping or object with the usual names (`input_ids`, `attention_mask`, `labels`, …), a tuple or list
            such as `(ids, labels)`, a single tensor, or a nesting of these; the first that holds tokens wins.
    """
    return _find(batch, 0)


def find_samples(batch: Any) -> int | None:
    """Number of samples in `batch`: the leading dimension of the tokens, else of its first tensor with one."""
    tokens = find_tokens(batch)
    if tokens is not None:
        return tokens.shape[0]
    for tensor in tensors_of(batch):
        if len(tensor.shape) > 0:
            return int(tensor.shape[0])
    return None


def tensors_of(batch: Any, depth: int = 0) -> Iterator[Any]:
    """Every tensor in `batch`, in the order a reader meets them."""
    if is_tensor(batch):
        yield batch
    elif depth < MAX_DEPTH:
        for value in _values(batch):
            yield from tensors_of(value, depth + 1)


def is_tensor(value: Any) -> bool:
    """Whether `value` has the shape and dtype of an array."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_integer(tensor: Any) -> bool:
    """Whether `tensor` holds whole numbers (not booleans)."""
    name = str(tensor.dtype).removeprefix("torch.")
    return name.startswith(("int", "uint"))


def _find(batch: Any, depth: int) -> TokenTensors | None:
    if is_tensor(batch):
        return TokenTensors(ids=batch, where="the batch") if _is_ids(batch) else None
    if depth > MAX_DEPTH:
        return None
    named = _as_mapping(batch)
    if named is not None:
        found = _from_names(named)
    elif isinstance(batch, (tuple, list)):
        found = _from_items(batch)
    else:
        return None
    if found is not None:
        return found
    for value in _values(batch):
        if not is_tensor(value):
            found = _find(value, depth + 1)
            if found is not None:
                return found
    return None


def _from_names(batch: Mapping[str, Any]) -> TokenTensors | None:
    labels = _first(batch, LABEL_KEYS, is_integer)
    embeddings = _first(batch, EMBEDDING_KEYS, lambda tensor: len(tensor.shape) == 3)
    where = next((key for key in ID_KEYS if _is_named_ids(key, batch.get(key))), "")
    if not where and embeddings is None:
        taken = {*LABEL_KEYS, *MASK_KEYS, "position_ids", "token_type_ids"}
        where = next((key for key, value in batch.items() if key not in taken and _is_ids(value)), "")
    if not where and embeddings is None:
        return None
    return TokenTensors(
        ids=batch[where] if where else None,
        attention_mask=_first(batch, MASK_KEYS, lambda tensor: len(tensor.shape) == 2),
        labels=labels,
        position_ids=_first(batch, ("position_ids",), is_integer),
        decoder_ids=_first(batch, ("decoder_input_ids",), is_integer),
        decoder_mask=_first(batch, ("decoder_attention_mask",), lambda tensor: len(tensor.shape) == 2),
        embeddings=None if where else embeddings,
        where=where or "inputs_embeds",
    )


def _from_items(batch: tuple[Any, ...] | list[Any]) -> TokenTensors | None:
    first = next((index for index, item in enumerate(batch) if _is_ids(item)), None)
    if first is None:
        return None
    ids, mask, labels = batch[first], None, None
    rest = [item for item in batch[first + 1 :] if is_tensor(item)]
    grids = [item for item in rest if len(item.shape) == 2 and tuple(item.shape) == tuple(ids.shape)]
    has_sample_labels = any(len(item.shape) == 1 and is_integer(item) for item in rest)
    for item in grids:
        # (ids, labels) is the common pair; only next to other labels can the second tensor be a mask
        if mask is None and (_is_boolean(item) or ((len(grids) > 1 or has_sample_labels) and _looks_like_mask(item))):
            mask = item
        elif labels is None and is_integer(item):
            labels = item
    if labels is None:
        # an encoder-decoder's (source ids, target ids) have lengths of their own
        labels = next((item for item in rest if _is_ids(item) and item is not mask), None)
    return TokenTensors(ids=ids, attention_mask=mask, labels=labels, where=f"item {first}")


def _looks_like_mask(tensor: Any) -> bool:
    """Whether the first row of a tensor on the host holds only 0 and 1; a device's tensor is not read."""
    device = getattr(tensor, "device", None)
    if getattr(device, "type", "cpu") != "cpu" or type(tensor).__name__ == "FakeTensor":
        return False
    row = tensor[0]
    return len(row) > 0 and int(row.min()) >= 0 and int(row.max()) == 1


def _is_boolean(tensor: Any) -> bool:
    return str(tensor.dtype).removeprefix("torch.") == "bool"


def _is_ids(value: Any) -> bool:
    return is_tensor(value) and len(value.shape) == 2 and is_integer(value)


def _is_named_ids(key: str, value: Any) -> bool:
    if not is_tensor(value) or not is_integer(value):
        return False
    # `input_ids` means tokens whatever its rank (packed batches are flat); a generic name needs the usual rank
    return len(value.shape) >= 1 if key == "input_ids" else len(value.shape) == 2


def _first(batch: Mapping[str, Any], keys: tuple[str, ...], accepts: Any) -> Any:
    for key in keys:
        value = batch.get(key)
        if is_tensor(value) and accepts(value):
            return value
    return None


def _rows_and_columns(shape: Any) -> tuple[int, int]:
    if len(shape) == 1:
        return 1, int(shape[0])
    rows = 1
    for size in shape[:-1]:
        rows *= int(size)
    return rows, int(shape[-1])


def _as_mapping(batch: Any) -> Mapping[str, Any] | None:
    if isinstance(batch, Mapping):
        return batch
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name, None) for field in fields(batch)}
    if hasattr(batch, "_asdict"):
        named: Mapping[str, Any] = batch._asdict()
        return named
    if hasattr(batch, "input_ids") or hasattr(batch, "inputs_embeds"):
        return dict(vars(batch))
    return None


def _values(batch: Any) -> Iterator[Any]:
    named = _as_mapping(batch)
    if named is not None:
        yield from named.values()
    elif isinstance(batch, (tuple, list)):
        yield from batch
