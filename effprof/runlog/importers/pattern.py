"""Case-insensitive patterns that look for a plain piece of text first: in long logs most lines lack most patterns.

Python's `re` tries a case-insensitive pattern at every character, some microseconds a line. A pattern that begins with
plain text can only match where that text stands, and `str.find` in the lower-cased line finds it many times faster.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_ZERO_WIDTH = "bB"  # after a backslash
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_LOOKING = ("(?<!", "(?<=", "(?!", "(?=")  # groups that match the empty string
_QUANTIFIERS = "?*+{"


@dataclass(frozen=True)
class Pattern:
    """A regular expression, searched without regard to case."""

    text: str

    @cached_property
    def expression(self) -> re.Pattern[str]:
        """The compiled pattern."""
        return re.compile(self.text, re.IGNORECASE)

    @cached_property
    def _required(self) -> tuple[str, tuple[str, ...]]:
        first, *others = plain_pieces(self.text)
        return first, tuple(others)

    def search(self, line: str, lowered: str) -> re.Match[str] | None:
        """As `re.Pattern.search` finds it; `lowered` is `line.lower()`, which callers keep for several patterns."""
        if len(lowered) != len(line):  # İ lower-cased is two characters: places would not agree
            return self.expression.search(line)
        place = self.earliest(lowered)
        return None if place < 0 else self.expression.search(line, place)

    def earliest(self, lowered: str) -> int:
        """Where a match can begin at the earliest; -1 where the line lacks a piece of text that every match has."""
        first, others = self._required
        place = lowered.find(first)
        for piece in others:
            if place < 0 or lowered.find(piece, place) < 0:
                return -1
        return place


def plain_pieces(pattern: str) -> list[str]:
    """Plain pieces of text, lower-cased, that every match of a pattern holds in this order.

    The first is what every match begins with, "" where that is not certain: what stands in groups, in classes, before
    a quantifier or beside a top-level alternative is not.
    """
    pieces = _pieces(pattern)
    return [pieces[0], *dict.fromkeys(piece for piece in pieces[1:] if piece)] if pieces else [""]


def _pieces(pattern: str) -> list[str]:
    """Runs of plain characters at the top level in their order, the first empty unless the pattern begins with it."""
    pieces, run = list[str](), ""
    place = 0
    while place < len(pattern):
        character = pattern[place]
        if character == "|":
            return []
        length, plain, is_empty = _element(pattern, place)
        place += length
        is_repeated = place < len(pattern) and pattern[place] in _QUANTIFIERS
        if is_empty and not is_repeated:
            continue
        if plain and plain.isascii() and not is_repeated:
            run += plain.lower()
            continue
        pieces.append(run)
        run = ""
    return [*pieces, run]


def _element(pattern: str, place: int) -> tuple[int, str, bool]:
    """(length, plain character or "", matches the empty string only) of the pattern's element at a place."""
    character = pattern[place]
    if character == "\\":
        following = pattern[place + 1]
        if following in _ZERO_WIDTH:
            return 2, "", True
        return 2, "" if following.isalnum() else following, False
    if character in _CLOSING:
        return _end(pattern, place) - place, "", pattern.startswith(_LOOKING, place)
    if character in "^$":
        return 1, "", True
    return 1, "" if character in ".?*+" else character, False


def _end(pattern: str, place: int) -> int:
    """Just behind the class, group or repetition that opens at a place."""
    if pattern[place] != "(":
        return _closing(pattern, place, _CLOSING[pattern[place]]) + 1
    depth = 0
    while True:
        character = pattern[place]
        if character == "[":
            place = _closing(pattern, place, "]")
        depth += (character == "(") - (character == ")")
        place += 2 if character == "\\" else 1
        if depth == 0:
            return place


def _closing(pattern: str, place: int, closing: str) -> int:
    """Where the first `closing` that is not escaped stands."""
    while pattern[place] != closing:
        place += 2 if pattern[place] == "\\" else 1
    return place
