"""Published before/after pairs per kind of change: the spread that a prediction's discount should reflect.

Set right against the sources' own words:

- `micro_batch`: InternLM-7B with one micro-batch of 8 in place of 2 was listed as accumulation.
- `pp_microbatches`: more micro-batches of a pipeline fill its bubble, which accumulation without one does not.
- `offload_optimizer_on`: switching offload on slows a step; it stood beside pairs that make an offload faster.
- `other`: bucketing and expert placement, which are no overlap; a bf16 loss, and fp16 to bf16, no pairs from fp32.
- Left out: four pairs of a whole run's seconds (LitGPT), which contain start-up and evaluation and are no step times.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np

TABLE = "published_changes.csv"


@dataclass(frozen=True)
class PublishedChange:
    """One measured pair, as its source prints it."""

    change: str
    what: str
    device: str
    metric: str
    speed_ratio: float  # after ÷ before, above 1 is faster
    memory_ratio: float | None
    source: str


@lru_cache(maxsize=1)
def published_changes() -> tuple[PublishedChange, ...]:
    """The package's table, in its order."""
    text = files("effprof.advise").joinpath(TABLE).read_text(encoding="utf-8")
    return tuple(
        PublishedChange(
            change=row["change"],
            what=row["what"],
            device=row["device"],
            metric=row["metric"],
            speed_ratio=float(row["speed_ratio"]),
            memory_ratio=float(row["memory_ratio"]) if row["memory_ratio"] else None,
            source=row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def published_gains(change: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the published gains of a kind of change (0.12 is 12 % more).

    Raises:
        KeyError: none was published.
    """
    gains = [each.speed_ratio - 1 for each in published_changes() if each.change == change]
    if not gains:
        raise KeyError(change)
    low, middle, high = np.quantile(gains, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)
