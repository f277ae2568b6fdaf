"""Predicted gains: never above what the run itself bounds, and discounted by stated evidence.

A gain is the relative change of useful tokens (or samples) per second. `basis` says of what: "steady" throughput for
levers on the step, "wall" for levers on the rest of the run.
"""

from __future__ import annotations

import math

from effprof.advise.published import published_gains
from effprof.analysis.model import Gain

Fractions = tuple[float, float, float]


def gain_from_removed_share(share: float, fractions: Fractions, basis: str = "steady") -> Gain:
    """Gain where parts of a share of the time go away: 1 / (1 − f · share) − 1 (Amdahl).

    Args:
        share: of the time that `basis` names, 0 … 1; all of it gone is the bound.
        fractions: of the share that goes away in the bad, the likely and the good case, each 0 … 1, with the reason
            stated in the rule's `gain_basis`.
    """
    low, likely, high = (_without(fraction * share) for fraction in sorted(fractions))
    return Gain(low=low, likely=likely, high=high, bound=_without(share), basis=basis)


def gain_from_faster_part(share: float, factors: Fractions, limit: float = math.inf, basis: str = "steady") -> Gain:
    """Gain where a share of the time runs faster by a factor: 1 / (1 − share + share / factor) − 1 (Amdahl).

    Args:
        share: of the time that the change speeds up, 0 … 1.
        factors: how many times faster in the bad, the likely and the good case; 1 is no change, below 1 slower.
        limit: the factor that hardware allows, infinite where the part can vanish; it makes the bound.
    """
    low, likely, high = (_faster(share, factor) for factor in sorted(factors))
    return clip_gain(low, likely, high, _faster(share, limit), basis)


def gain_from_published(change: str, bound: float, basis: str = "steady") -> Gain:
    """Quartiles of the published gains of a kind of change, none above what the run bounds.

    Args:
        change: kind in `published_changes.csv`.
        bound: the most that this run can gain, as a relative change.
    """
    low, likely, high = published_gains(change)
    return clip_gain(low, likely, high, bound, basis)


def clip_gain(low: float, likely: float, high: float, bound: float, basis: str = "steady") -> Gain:
    """A gain of these three values, ordered and none above the bound."""
    low, likely, high = sorted((low, likely, high))
    bound = max(bound, 0.0)
    return Gain(low=min(low, bound), likely=min(likely, bound), high=min(high, bound), bound=bound, basis=basis)


def no_gain(basis: str = "steady") -> Gain:
    """For findings that bring correctness, memory or money, and no throughput."""
    return Gain(low=0.0, likely=0.0, high=0.0, bound=0.0, basis=basis)


def _without(share: float) -> float:
    # a share that rounds to everything would promise infinity
    return 1 / (1 - min(share, 0.99)) - 1


def _faster(share: float, factor: float) -> float:
    rest = share / factor if math.isfinite(factor) else 0.0
    return 1 / max(1 - share + rest, 0.01) - 1
