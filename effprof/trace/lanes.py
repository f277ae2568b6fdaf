"""Exports that tell what an event is by the process it is drawn under: Ascend's `trace_view.json`.

"Ascend Hardware" holds the tasks of the device's streams, "Communication" (older: "HCCL") the collectives over the
planes that carry them out. Other processes ("Overlap Analysis", "AI Core Freq", …) repeat or count what these show.
"""

from __future__ import annotations

import re
from typing import Any

from effprof.trace.events import Number
from effprof.trace.table import Table

HARDWARE, COMMUNICATION, OTHER, UNKNOWN = range(4)
_WAITS = re.compile(r"event_?(?:wait|record|reset)|notify_?(?:wait|record)|write_?value|placeholder", re.IGNORECASE)
_COPIES = re.compile(r"memcpy|sdma|dma", re.IGNORECASE)
_COLLECTIVE = re.compile(r"^(?:hcom_|hccl)", re.IGNORECASE)


class Lanes:
    """Events without a category, kept until it is known which process they belong to."""

    def __init__(self) -> None:
        self.table = Table(small=("name", "lane", "task"))
        self._indices: dict[Any, int] = {}
        self._kinds: dict[Any, int] = {}

    def name(self, process: Number, name: str) -> None:
        """A process says what it is called."""
        if name.startswith("Ascend Hardware"):
            self._kinds[process] = HARDWARE
        elif name in ("Communication", "HCCL"):
            self._kinds[process] = COMMUNICATION
        else:
            self._kinds[process] = OTHER

    def may_matter(self, process: Number) -> bool:
        return self._kinds.get(process, UNKNOWN) != OTHER

    def index(self, process: Number) -> int:
        return self._indices.setdefault(process, len(self._indices))

    def kinds(self) -> list[int]:
        """Per lane index, what its process turned out to be."""
        return [self._kinds.get(process, UNKNOWN) for process in self._indices]


def task_kind(lane: int, name: str, task_type: str) -> str | None:
    """`kernel`, `communication`, `copy`, or None for waits, records and what only repeats other lanes."""
    if lane == COMMUNICATION:
        return "communication" if _COLLECTIVE.match(name) else None
    if lane != HARDWARE or _WAITS.search(name) or _WAITS.search(task_type):
        return None
    if _COPIES.search(task_type) or (not task_type and _COPIES.search(name)):
        return "copy"
    return "kernel"
