"""Which steps of a restarted run were kept: a resume discards what lies behind its checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effprof.analysis.model import Warning
from effprof.runlog.reader import Attempt, Run
from effprof.runlog.schema import BEGAN


@dataclass(frozen=True)
class KeptSteps:
    """Bounds of the steps of one attempt whose result was kept. Of a step made twice, the first counts as kept.

    Attributes:
        reached_before: highest step number of any earlier attempt; steps up to it are repeated.
        kept_until: steps above it were discarded by a later resume and never made again.
    """

    reached_before: float
    kept_until: float

    def are_lost(self, numbers: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the steps with these numbers, shape (steps,), were not kept; a step without a number (NaN) was."""
        lost: NDArray[np.bool_] = (numbers <= self.reached_before) | (numbers > self.kept_until)
        return lost


def kept_steps(run: Run) -> list[KeptSteps]:
    """The bounds of each attempt.

    An attempt that resumes after step r discards the steps above r that were made before it, unless it, or an attempt
    after it, makes them again. An attempt that neither says where it went on nor made a step discards nothing.
    """
    spans = [_first_and_last(attempt) for attempt in run.attempts]
    found = []
    for place in range(len(spans)):
        before = max((last for _, last in spans[:place]), default=-1.0)
        kept_until = math.inf
        for later in range(place + 1, len(spans)):
            first, _ = spans[later]
            if math.isfinite(first):
                kept_until = min(kept_until, max(first - 1, *(last for _, last in spans[later:]), -1.0))
        found.append(KeptSteps(max(before, -1.0), kept_until))
    return found


def unknown_resumes(run: Run) -> list[Warning]:
    """A warning where the run's last attempts made no step, so that what they discarded can't be known."""
    made = [math.isfinite(_first_and_last(attempt)[0]) for attempt in run.attempts]
    if not any(made) or made[-1]:
        return []
    silent = [attempt.index for attempt in run.attempts[len(made) - made[::-1].index(True) :]]
    which = f"attempt {silent[0]}" if len(silent) == 1 else f"attempts {silent[0]} to {silent[-1]}"
    message = (
        f"{which} made no step, so from which step the run went on is not on record: "
        "all steps before count as kept, though those after the last checkpoint may be lost"
    )
    return [Warning(code="resume_unknown", message=message)]


def _first_and_last(attempt: Attempt) -> tuple[float, float]:
    """Lowest and highest step number on any rank of an attempt; (inf, -inf) where there is none.

    An attempt that recorded from which step it went on has made the next one its first, whether it came to it or not.
    """
    first, last = math.inf, -math.inf
    for rank in attempt.ranks:
        for event in rank.events:
            if event.name == BEGAN and isinstance(step := event.data.get("step"), int):
                first = min(first, step + 1.0)
        numbers = rank.columns.get("step")
        if numbers is not None and np.isfinite(numbers).any():
            first, last = min(first, float(np.nanmin(numbers))), max(last, float(np.nanmax(numbers)))
    return first, last
