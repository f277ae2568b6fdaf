"""Which span of a host thread a moment lies in: operators and annotations around a launch."""

from __future__ import annotations

import numpy as np

from effprof.trace.intervals import Floats, Indices, distinct

_LEVELS = 8  # spans that began later but are over already, which are looked past


def enclosing(moments: Floats, threads: Indices, starts: Floats, ends: Floats, span_threads: Indices) -> Indices:
    """Per moment, the index of the innermost span of the same thread that holds it; -1 where none does.

    Args:
        moments: nan where unknown. threads: host thread of each moment.
        starts, ends, span_threads: the spans, in order of start.
    """
    found = np.full(len(moments), -1, dtype=np.intp)
    if not len(starts):
        return found
    for thread in distinct(span_threads):
        spans = np.flatnonzero(span_threads == thread)
        wanted = np.flatnonzero((threads == thread) & np.isfinite(moments))
        at = np.searchsorted(starts[spans], moments[wanted], side="right") - 1
        for _ in range(_LEVELS):
            is_open = at >= 0
            wanted, at = wanted[is_open], at[is_open]
            is_inside = moments[wanted] < ends[spans[at]]
            found[wanted[is_inside]] = spans[at[is_inside]]
            wanted, at = wanted[~is_inside], at[~is_inside] - 1
            if not len(wanted):
                break
    return found
