"""Makes transformers' models count: attention by the pairs of its mask function, experts without a loop over data.

transformers lets attention and masks be registered by name. The ones registered here compute nothing: the mask stands
for its number of pairs, and the attention books them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from effprof.workload.attention import _nested_configs, attend, running_mode
from effprof.workload.counter import causal_pairs, window_pairs
from effprof.workload.known_values import outside_modes
from effprof.workload.written_attention import PAIRS

HF_NAME = "effprof_count"
# A mask function that is no known pattern is evaluated in blocks of rows, so that it needs little memory.
_ROWS_AT_ONCE = 512


def prepare_transformers(module: torch.nn.Module) -> None:
    """Make every transformers model inside `module` (a copy) count its attention and run its experts without a loop.

    Does nothing where transformers was never imported, or is too old to have the two interfaces.
    """
    if "transformers" not in sys.modules:
        return
    if not _register_in_transformers():
        return
    seen: set[int] = set()
    for part in module.modules():
        config = getattr(part, "config", None)
        for each in _nested_configs(config):
            if id(each) not in seen and hasattr(each, "_attn_implementation"):
                seen.add(id(each))
                each._attn_implementation_internal = HF_NAME
                if hasattr(each, "_experts_implementation"):
                    each._experts_implementation_internal = "batched_mm"


def _register_in_transformers() -> bool:
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError:
        return False
    AttentionInterface.register(HF_NAME, _transformers_attention)
    AttentionMaskInterface.register(HF_NAME, _transformers_mask)
    return True


def _transformers_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    q_offset: int = 0,
    kv_offset: int = 0,
    device: Any = "cpu",
    **_: Any,
) -> torch.Tensor:
    """Stands in for the mask: the right shape without its memory, and the number of pairs on it."""
    mask = torch.empty((), dtype=torch.bool, device=device).expand(batch_size, 1, int(q_length), int(kv_length))
    setattr(mask, PAIRS, _mask_pairs(mask_function, int(q_length), int(kv_length)))
    return mask


def _mask_pairs(function: Callable[..., Any], queries: int, keys: int) -> tuple[int, int | None] | None:
    """(pairs, window) of a mask function, found in its composition; else by evaluating it; None where neither works."""
    parts = list(_mask_parts(function))
    names = [name for name, _ in parts]
    if all(name in _KNOWN_MASKS for name in names):
        is_causal = "causal_mask_function" in names
        windows = [value for name, value in parts if name == "sliding_window_overlay"]
        if is_causal and queries == keys:
            window = min((int(each) for each in windows), default=None)
            return window_pairs(queries, window), window
        if not is_causal and not windows:
            return queries * keys, None
    return _evaluate_mask(function, queries, keys)


# Padding and packing are the batch's, not the model's: the counters of the step hold them.
_KNOWN_MASKS = {
    "causal_mask_function",
    "bidirectional_mask_function",
    "sliding_window_overlay",
    "padding_mask_function",
    "packed_sequence_mask_function",
}


def _mask_parts(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """The functions a composed mask is the intersection of, by name, each with what its closure holds."""
    name = getattr(function, "__qualname__", "").split(".<locals>")[0]
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    if name == "and_masks":
        for parts in cells:
            for part in parts:
                yield from _mask_parts(part)
    elif name == "remap_positions_for_packed_sequence":
        for part in cells:
            if callable(part):
                yield from _mask_parts(part)
    else:
        yield name, next((cell for cell in cells if isinstance(cell, int)), None)


def _evaluate_mask(function: Callable[..., Any], queries: int, keys: int) -> tuple[int, int | None] | None:
    first = torch.zeros((), dtype=torch.long)
    total = 0
    try:
        with outside_modes():
            columns = torch.arange(keys)[None, :]
            for start in range(0, queries, _ROWS_AT_ONCE):
                rows = torch.arange(start, min(start + _ROWS_AT_ONCE, queries))[:, None]
                total += int(torch.as_tensor(function(first, first, rows, columns)).expand(len(rows), keys).sum())
    except Exception:  # a mask made of the batch's own tensors cannot be evaluated without their values
        return None
    return total, None


def _transformers_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention: (B, H, T, D) in, (B, T, H, Dv) out."""
    mode = running_mode()
    queries, keys = int(query.shape[-2]), int(key.shape[-2])
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    found = getattr(attention_mask, PAIRS, None)
    if found is not None:
        pairs, window = found
    elif attention_mask is None or sliding_window is not None or causal:
        window = sliding_window if causal and queries == keys else None
        pairs = (
            queries * keys
            if not causal
            else window_pairs(queries, window)
            if queries == keys
            else causal_pairs(queries, keys)
        )
    else:
        is_additive = attention_mask.is_floating_point()
        pairs, window = mode.pairs_left(attention_mask, queries, keys, is_additive=is_additive, marks_attended=True)
    output = attend(mode.counter, query, key, value, pairs, window)
    weights = query.new_empty((*query.shape[:-1], keys)) if options.get("output_attentions") else None
    return output.transpose(1, 2).contiguous(), weights
