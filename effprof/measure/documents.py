"""Arithmetic on documents: how many query-key pairs a mask leaves, given the lengths of what it separates."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Integers: TypeAlias = npt.NDArray[np.int64]


def attended_pairs(lengths: Integers, causal: bool, window: int | None = None) -> int:
    """Query-key pairs that attention within documents of `lengths` tokens leaves.

    Causal: query i sees i + 1 keys, L(L+1)/2 a document; bidirectional: L². A window of w keeps the last w keys of a
    causal query (itself included), or the keys at most w // 2 away on either side of a bidirectional one.
    """
    if window is None:
        squares = int(lengths @ lengths)
        return (squares + int(lengths.sum())) // 2 if causal else squares
    if causal:
        # the first `reach` queries see 1, 2, … keys, the others `reach` each
        reach = np.minimum(lengths, window)
        return (int(reach.sum()) - int(reach @ reach)) // 2 + int(lengths @ reach)
    # a query has itself, and a distance d < reach occurs L - d times in each direction
    reach = np.minimum(lengths, window // 2 + 1)
    return int(lengths.sum()) + int((reach - 1) @ (2 * lengths - reach))


def row_tokens(mask: Array) -> Integers:
    """Tokens of each row of a padding mask (B, T), nonzero where a position is real."""
    if mask.dtype != np.bool_ and mask.dtype.kind not in "iu":
        mask = mask != 0
    sums: Integers = np.add.reduce(mask, axis=1, dtype=np.int64)
    return sums


def lengths_between(breaks: Array, columns: int, real: Array | None = None) -> Integers:
    """Tokens of each document where documents are runs of positions; those without a token are left out.

    Args:
        breaks: booleans (B·T - 1), true where a position, rows one after the other, starts another document than the
            position before it. Every row starts a new one.
        columns: T.
        real: booleans (B, T), true where a position is a token; None where all are.
    """
    # flat arrays throughout: numpy is three times slower on the two-dimensional slices
    starts = np.empty(breaks.size + 2, dtype=np.bool_)
    starts[1:-1] = breaks
    starts[::columns] = True
    at = starts.nonzero()[0]
    if real is None:
        return at[1:] - at[:-1]
    tokens: Integers = np.add.reduceat(real.reshape(-1), at[:-1], dtype=np.int64)
    return tokens[tokens > 0]


def changes(numbers: Array) -> Array:
    """Booleans (B·T - 1), true where a position's document number differs from the one before it."""
    flat = numbers.reshape(-1)
    result: Array = flat[1:] != flat[:-1]
    return result


def restarts(position_ids: Array) -> Array:
    """Booleans (B·T - 1), true where `position_ids` do not go on by one from the position before."""
    flat = position_ids.reshape(-1)
    result: Array = flat[1:] - flat[:-1] != 1
    return result


def is_document_padding(numbers: Array) -> Array | None:
    """Booleans (B, T) of padding among document numbers: negative ones, and zeros that end a row after other numbers.

    None where there is none. A row that starts with document 0 has no trailing zeros of another meaning.
    """
    lowest = int(numbers.min()) if numbers.size else 1
    if lowest > 0:
        return None
    ends_in_zero = (numbers[:, -1:] == 0) & (numbers[:, :1] != 0)
    if lowest == 0 and not ends_in_zero.any():
        return None
    padding: Array = (numbers < 0) | ((numbers == 0) & ends_in_zero)
    return padding
