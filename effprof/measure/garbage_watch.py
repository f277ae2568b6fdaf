"""Times Python's garbage collector while steps are taken: it stops every thread of the process."""

from __future__ import annotations

import gc
from collections import deque
from time import perf_counter_ns as now
from typing import Any

from effprof.measure.clock import PhaseClock

COLUMN = "gc_ns"
_OLDEST = 2


class GarbageWatch:
    """Listens to the collector from its construction until `remove`; costs nothing in a step without a collection."""

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock
        self._started_ns = 0
        self._pauses: deque[tuple[int, int]] = deque()  # step sequence, nanoseconds; filled by whoever allocates
        self._total_ns = 0
        self._longest_ns = 0
        self._count = 0
        self._full = 0
        self._listener = self._on_collection  # a bound method is a new object each time it is asked for
        gc.callbacks.append(self._listener)

    def remove(self) -> None:
        """Stop listening."""
        if self._listener in gc.callbacks:
            gc.callbacks.remove(self._listener)

    def poll(self) -> list[tuple[int, dict[str, int]]]:
        """(step sequence, {column: nanoseconds}) of the collections since the last call."""
        spent: dict[int, int] = {}
        for _ in range(len(self._pauses)):
            sequence, pause_ns = self._pauses.popleft()
            spent[sequence] = spent.get(sequence, 0) + pause_ns
        return [(sequence, {COLUMN: pause_ns}) for sequence, pause_ns in spent.items()]

    def facts(self) -> dict[str, Any]:
        """What the collector took of the steps so far; nothing before the first step."""
        began_ns = self._clock.steps_began_ns
        if not began_ns:
            return {}
        return {
            "gc_s": self._total_ns / 1e9,
            "gc_share": self._total_ns / max(1, now() - began_ns),
            "gc_collections": self._count,
            "gc_full_collections": self._full,
            "gc_longest_s": self._longest_ns / 1e9,
        }

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started_ns = now()
            return
        if not self._clock.in_steps or not self._started_ns:
            return
        pause_ns = now() - self._started_ns
        self._pauses.append((self._clock.head, pause_ns))
        self._total_ns += pause_ns
        self._longest_ns = max(self._longest_ns, pause_ns)
        self._count += 1
        self._full += info["generation"] == _OLDEST
