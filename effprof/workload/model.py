"""Model FLOPs as a linear function of what a step holds: tokens, attended pairs, samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CONVENTIONS = ("exact", "megatron", "palm", "6n")


@dataclass(frozen=True)
class FlopsModel:
    """Training FLOPs (forward + backward) per unit of each counter, for every convention.

    Counters are those of `effprof.runlog.schema.COUNTERS`. A transformer's matmuls cost the same for every token
    and its attention the same for every attended pair, so two numbers hold for any padding, packing and length.

    Attributes:
        conventions: convention → counter → FLOPs per unit. A convention that does not apply is absent.
        window: sliding-window length that `window_pairs` is counted with, None without windowed layers.
        causal: whether `pairs` are those of a causal mask; None for models without attention.
    """

    conventions: Mapping[str, Mapping[str, float]]
    window: int | None = None
    causal: bool | None = None
    notes: tuple[str, ...] = field(default=())

    def evaluate(self, counts: Mapping[str, float | None], convention: str = "exact") -> float | None:
        """FLOPs of a step holding `counts`; None if the convention or a counter it needs is missing."""
        return evaluate(self.conventions.get(convention), counts)


def evaluate(terms: Mapping[str, float] | None, counts: Mapping[str, float | None]) -> float | None:
    """Sum of `terms[counter] * counts[counter]`; None where `terms` is empty or a needed counter is missing."""
    if not terms:
        return None
    total = 0.0
    for counter, flops in terms.items():
        count = counts.get(counter)
        if count is None:
            return None
        total += flops * count
    return total
