"""How numbers are shown: terminal, Markdown, JSON."""

from __future__ import annotations

from typing import Protocol

from effprof.analysis.compare import Comparison
from effprof.analysis.model import Analysis
from effprof.errors import EffprofError


class Report(Protocol):
    """What every output looks like from outside: how its files end, and two functions from numbers to text."""

    EXTENSION: str

    def render(self, analysis: Analysis) -> str:
        """The report of one run."""

    def render_comparison(self, comparison: Comparison) -> str:
        """The report of several runs side by side."""


def choose(*, as_json: bool, as_markdown: bool) -> Report:
    """The report that the options ask for, the terminal's without any.

    Raises:
        EffprofError: more than one is asked for.
    """
    if as_json and as_markdown:
        raise EffprofError("--json and --markdown exclude each other", "give one of them")
    from effprof.reports import json, markdown, terminal

    return json if as_json else markdown if as_markdown else terminal
