"""Pieces of HTML, each made so that text from a log can only ever be text."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from effprof.reports.text import clean

SMALLEST_SEGMENT = 0.001
TABLE_ROWS = 40  # of a chart's data, thinned evenly: a table is read, not scanned for every bin


def text(value: object, limit: int = 300) -> str:
    """A string from a log as one line that HTML shows as it is, in content and in quoted attributes."""
    return html.escape(clean(value, limit), quote=True)


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element.

    Only ASCII comes out, so U+2028 and its like are escapes, and none of `<`, `>` and `&` is left, so neither
    `</script>` nor `<!--` can occur.
    """
    raw = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", text_columns: Sequence[int] = ()
) -> str:
    """A table whose first column names its rows. Cells are escaped here."""

    def kind(column: int) -> str:
        return ' class="text"' if column in text_columns else ""

    head = "".join(f'<th scope="col"{kind(i)}>{text(name)}</th>' for i, name in enumerate(headers))
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(f"<td{kind(i)}>{text(cell, 600)}</td>" for i, cell in enumerate(row[1:], start=1))
        + "</tr>"
        for row in rows
    )
    about = f"<caption>{text(caption)}</caption>" if caption else ""
    return f"<table>{about}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def scrolling(inner: str, label: str) -> str:
    """A wide or long table in a box of its own, which the keyboard can reach and scroll."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">{inner}</div>'


def folded(summary: str, inner: str) -> str:
    """Something that is opened by hand."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


def figure(
    name: str,
    title: str,
    description: str,
    data_table: str,
    *,
    unit: str = "",
    legend: str = "",
    is_small: bool = False,
) -> str:
    """A chart with its title, a description for those who can't see it, its legend and its numbers as a table."""
    size = " small" if is_small else ""
    of_unit = f' <span class="unit">{text(unit)}</span>' if unit else ""
    label = f"{title}: {description} Arrow keys read single values; the table below holds the numbers."
    return (
        f'<figure><figcaption id="cap-{text(name)}">{text(title)}{of_unit}</figcaption>'
        f'<div class="chart{size}" role="img" tabindex="0" aria-label="{text(label, 600)}" '
        f'data-chart="{text(name)}"></div>'
        f"{legend}{folded(f'{title} as a table', scrolling(data_table, f'{title}, table'))}</figure>"
    )


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(name, CSS variable) pairs as a list of coloured marks."""
    items = "".join(f'<li><i style="background:var({text(color)})"></i>{text(name)}</li>' for name, color in entries)
    return f'<ul class="legend">{items}</ul>' if items else ""


def strip(parts: Iterable[tuple[str, float, str]]) -> str:
    """(name, share of the whole, CSS variable) as one bar of segments; a legend or table beside it says the same."""
    segments = "".join(
        f'<i style="flex:{share:.5f} 0 0;background:var({text(color)})" title="{text(name)}"></i>'
        for name, share, color in parts
        if share > SMALLEST_SEGMENT
    )
    return f'<div class="strip" aria-hidden="true">{segments}</div>'


def section(identifier: str, title: str, lead: str, inner: str, *, is_card: bool = True) -> str:
    """A part of the page with a heading that the navigation leads to."""
    about = f'<p class="lead">{text(lead, 600)}</p>' if lead else ""
    body = f'<div class="card stack">{inner}</div>' if is_card else inner
    heading = f'<h2 id="{identifier}-h">{text(title)}</h2>'
    return f'<section id="{identifier}" aria-labelledby="{identifier}-h">{heading}{about}{body}</section>'


def pairs(entries: Iterable[tuple[str, str]]) -> str:
    """Names with their values."""
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value, 1000)}</dd>" for name, value in entries if value)
    return f'<dl class="pairs">{items}</dl>' if items else ""


def thinned(length: int, limit: int = TABLE_ROWS) -> list[int]:
    """At most `limit` indices, spread evenly over `length`, first and last among them."""
    if length <= limit:
        return list(range(length))
    return sorted({round(i * (length - 1) / (limit - 1)) for i in range(limit)})


def thin_note(length: int, what: str = "bins") -> str:
    """What a thinned table leaves out."""
    return (
        f"{TABLE_ROWS} of {length:,} {what}, evenly spread; effprof analyze --json has the figures"
        if length > TABLE_ROWS
        else ""
    )
