"""Lines that differ in nothing but their numbers: what was found out of one holds of the next, without searching again.

A tool prints the same text at every step, and only numbers change. A line cut at its numbers tells its layout, the
text between them; of a layout that was seen before it is known which number goes into which column. A layout is exact,
padding and signs included, so that every pattern finds the same numbers in all its lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from effprof.runlog.importers.text import to_number

Span = tuple[int, int]
# What the patterns take for a number, unsigned. ASCII classes: `\\d` and a look-behind would take three times as long.
_NUMBER = re.compile(r"([0-9][0-9,_]*\.?[0-9]*(?:[eE][-+]?[0-9]+)?)")
_LONGEST_LINE = 4000
_MOST_LAYOUTS = 256  # numbers grow by a digit now and then; a tool with more layouts than this has none


@dataclass(frozen=True)
class _Layout:
    """Places of a line's numbers: of the columns, each with its scale, and of the others by what must not change.

    A pattern may tell whole numbers from broken ones; digits of a word (H100, E2E) are text.
    """

    columns: tuple[tuple[str, int, float], ...]
    whole: tuple[int, ...]
    broken: tuple[int, ...]
    in_words: tuple[tuple[int, str], ...]

    def fits(self, parts: list[str]) -> bool:
        """Whether a line with the same text between its numbers is told apart by no pattern."""
        number = parts.__getitem__
        return (
            (not self.whole or "".join(map(number, self.whole)).isdecimal())
            and not any(map(str.isdecimal, map(number, self.broken)))
            and (not self.in_words or all(parts[place] == text for place, text in self.in_words))
        )


class Layouts:
    """The layouts of one log's step lines."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], _Layout] = {}
        self._learned = self._used = 0

    def read(self, line: str) -> dict[str, float] | None:
        """Column → value of a line in a known layout; None in another."""
        if not self._known or len(line) > _LONGEST_LINE:
            return None
        parts = _NUMBER.split(line)
        layout = self._known.get(tuple(parts[::2]))
        if layout is None or not layout.fits(parts):
            return None
        self._used += 1
        return {name: to_number(parts[place]) * scale for name, place, scale in layout.columns}

    def learn(self, line: str, found: Mapping[str, tuple[Span, float]]) -> None:
        """Keep the layout of a line in which the patterns found column → (where its number stands, scale).

        Lines whose columns hold anything but plain numbers (nan, 22.8K, -1) have no layout.
        """
        if len(line) > _LONGEST_LINE or self._learned >= _MOST_LAYOUTS + self._used:
            return
        parts = _NUMBER.split(line)
        at, places = 0, dict[Span, int]()
        for place, part in enumerate(parts):
            if place % 2:
                places[at, at + len(part)] = place
            at += len(part)
        if any(span not in places for span, _ in found.values()):
            return
        if len(self._known) >= _MOST_LAYOUTS:
            self._known.clear()
        self._learned += 1
        columns = tuple((name, places[span], scale) for name, (span, scale) in found.items())
        others = set(places.values()) - {place for _, place, _ in columns}
        in_words = {place for place in others if parts[place - 1][-1:].isalnum()}
        whole = {place for place in others - in_words if parts[place].isdecimal()}
        self._known[tuple(parts[::2])] = _Layout(
            columns,
            whole=tuple(sorted(whole)),
            broken=tuple(sorted(others - in_words - whole)),
            in_words=tuple((place, parts[place]) for place in sorted(in_words)),
        )
