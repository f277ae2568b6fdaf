"""Reads what vendors' tools print: numbers with units in cells, tables drawn with characters, rows of CSV.

Columns are found by the names in the table's head, so that a release that adds, drops or moves one changes nothing.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence

MIB = 1 << 20
# What tools print where they have no value; sentinels of drivers that reach the text belong to it.
NO_VALUE = frozenset({"", "-", "--", "n/a", "na", "none", "null", "nan", "inf", "-inf", "unknown", "err!", "-275"})
NO_NUMBERS = frozenset({0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_SIZES = {"b": 1, "kib": 1 << 10, "kb": 1 << 10, "mib": MIB, "mb": MIB, "gib": 1 << 30, "gb": 1 << 30}
_USED_OF_TOTAL = re.compile(
    r"^(?P<used>.*?)\s*(?P<unit>[kKmMgG]i?B)?\s*[/(]\s*(?P<total>[\d.]+)\s*(?P<of>[kKmMgG]i?B)?"
)
_BUS_ID = re.compile(r"(?:([0-9a-fA-F]{2,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])")
# Lines that only draw: ASCII rules and those of box-drawing characters.
_RULE = re.compile(r"^[\s|+=\-\u2500-\u257f:]*$")
_BARS = str.maketrans(dict.fromkeys("│┃║", "|"))
_SLASH_BETWEEN_NUMBERS = re.compile(r"(?<=[\w%])\s*/\s*(?=\d)")


def number(text: str | None) -> float | None:
    """The first number of a cell, whatever unit follows; None for every way of saying "no value"."""
    cell = (text or "").strip().strip("[]").strip()
    if cell.lower() in NO_VALUE or cell.lower().startswith(("n/a", "not ")):
        return None
    found = _NUMBER.search(cell)
    if found is None:
        return None
    value = float(found[0])
    return None if value in NO_NUMBERS or not math.isfinite(value) else value


def size(text: str | None, unit: str = "MiB") -> float | None:
    """Bytes of a cell such as "768MiB"; `unit` counts where the cell has none. These tools mean MiB by MB."""
    value = number(text)
    found = re.search(r"\d\s*([kKmMgG]?i?B)\b", text or "")
    return None if value is None else value * _SIZES[(found[1] if found else unit).lower()]


def used_of_total(text: str | None, unit: str = "MiB") -> tuple[float | None, float | None]:
    """Bytes used and total of a cell such as "826/65536 MiB", "0 MiB/ 23374 MiB" or "66641MiB(81920MiB)".

    A pair whose used exceeds its total is wrong in both (Moore Threads' tool with the IOMMU off): neither is returned.
    """
    found = _USED_OF_TOTAL.match((text or "").strip())
    if found is None:
        return None, None
    total_unit = found["of"] or found["unit"] or unit
    used = size(found["used"], found["unit"] or total_unit)
    total = size(found["total"], total_unit)
    if used is not None and total is not None and (used > total or total == 0):
        return None, None
    return used, total


def watts_of_limit(text: str | None) -> tuple[float | None, float | None]:
    """Watts drawn and allowed of a cell such as "88W /  600W", "106 W/ 250 W" or "105W  300W"."""
    drawn, _, limit = (text or "").partition("/") if "/" in (text or "") else (text or "").partition("  ")
    return number(drawn), number(limit)


def bus_id(text: str | None) -> str | None:
    """PCI address as the kernel writes it, "0000:3b:00.0"; None where the cell holds none."""
    found = _BUS_ID.search(text or "")
    if found is None:
        return None
    domain = int(found[1] or "0", 16)
    return f"{domain:04x}:{found[2]}:{found[3]}.{found[4]}".lower()


def csv_rows(text: str, key: str) -> list[dict[str, str]]:
    """Rows of a CSV whose head holds a column `key`; log lines before it and repeated heads are left out.

    Names and cells are stripped; a row that is shorter than the head lacks its last columns.
    """
    head: list[str] | None = None
    rows = []
    for cells in csv.reader(text.splitlines(), skipinitialspace=True):
        stripped = [cell.strip() for cell in cells]
        if key in stripped:
            head = stripped
        elif head is not None and len(stripped) > 1:
            rows.append(dict(zip(head, stripped, strict=False)))
    return rows


def drawn_table(text: str, *names: str) -> list[dict[str, str]]:
    """A device per element: column name → cell, of the table whose head holds all of `names`.

    A head of several lines makes devices of as many lines (`nvidia-smi` and its likes); a name that stands twice in
    the head keeps its first cell. Cells of one box are told apart by two blanks or more. A device whose lines are cut
    off has the cells of those that are there.
    """
    blocks = list(_blocks(text))
    for at, block in enumerate(blocks):
        head = [[_words(cell) for cell in line] for line in block]
        found = {word for line in head for cell in line for word in cell}
        if set(names) <= found:
            return list(_devices(head, blocks[at + 1 :]))
    return []


def _blocks(text: str) -> Iterator[list[list[str]]]:
    """The lines of the drawing between its rules, each as cells; lines without a bar are no part of a table."""
    block: list[list[str]] = []
    for line in text.translate(_BARS).splitlines():
        if _RULE.match(line) or "|" not in line:
            if block and (_RULE.match(line) or not line.strip()):
                yield block
                block = []
            continue
        block.append(line.strip().strip("|").split("|"))
    if block:
        yield block


def _devices(head: Sequence[Sequence[Sequence[str]]], blocks: Sequence[list[list[str]]]) -> Iterator[dict[str, str]]:
    for block in blocks:
        for start in range(0, len(block), len(head)):
            lines = block[start : start + len(head)]
            if any(len(cells) != len(names) for cells, names in zip(lines, head, strict=False)):
                return  # another table
            device: dict[str, str] = {}
            for cells, names in zip(lines, head, strict=False):
                for cell, words in zip(cells, names, strict=True):
                    for name, value in _pairs(words, cell):
                        device.setdefault(name, value)
            yield device


def _words(cell: str) -> list[str]:
    return re.split(r"\s{2,}", cell.strip())


def _pairs(names: Sequence[str], cell: str) -> Iterator[tuple[str, str]]:
    """Names of a box with its values; all of the box for each name where their numbers differ."""
    values = _words(_SLASH_BETWEEN_NUMBERS.sub("/", cell))
    if len(values) == len(names):
        yield from zip(names, values, strict=True)
    else:
        for name in names:
            yield name, cell.strip()
