"""Reports for programs: the analysis itself, one JSON document on one line."""

from __future__ import annotations

import msgspec

from effprof.analysis.compare import Comparison
from effprof.analysis.model import Analysis

EXTENSION = "json"


def render(analysis: Analysis) -> str:
    """One line: a JSON document, and a record of JSON lines where several runs are analysed."""
    return _line(analysis)


def render_comparison(comparison: Comparison) -> str:
    """One line: a JSON document."""
    return _line(comparison)


def _line(document: Analysis | Comparison) -> str:
    # msgspec writes what is not finite as null, so that any JSON reader takes it
    return msgspec.json.encode(document).decode() + "\n"
