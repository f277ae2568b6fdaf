"""Pieces of Markdown that show strings as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate


def escape(text: str) -> str:
    """Text that Markdown and the HTML made of it show as it is."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table whose cells are shown as they are."""
    cells = [[escape(cell.replace("\n", ", ")) for cell in row] for row in rows]
    return tabulate(cells, headers=[escape(head) for head in headers], tablefmt="pipe", disable_numparse=True)
