"""How a check is shown: a line per figure in the terminal, a table in Markdown, one JSON document."""

from __future__ import annotations

import msgspec
from tabulate import tabulate

from effprof.analysis.check import FAILED, INCONCLUSIVE, PASSED, Check, Checked
from effprof.reports.side_by_side import LABELS
from effprof.reports.text import NOT_MEASURED, clean, percent, significant

_SIGNS = {PASSED: "✅", FAILED: "❌", INCONCLUSIVE: "⚠️"}
_HEADS = ("figure", "baseline", "run", "change", "verdict")


def render(check: Check, *, as_json: bool = False, as_markdown: bool = False) -> str:
    """The check as text."""
    if as_json:
        return msgspec.json.encode(check).decode() + "\n"
    rows = [_row(each) for each in check.checks]
    title = f"effprof check: {check.verdict} (at most {percent(check.max_regression)} worse is allowed)"
    notes = [clean(warning.message) for warning in check.warnings]
    against = f"{clean(check.path)} against {', '.join(clean(path) for path in check.baselines)}"
    if as_markdown:
        table = tabulate(rows, headers=_HEADS, tablefmt="github", disable_numparse=True)
        body = [f"### {_SIGNS[check.verdict]} {title}", against, table, *(f"> {note}" for note in notes)]
        return "\n\n".join(body) + "\n"
    table = tabulate(rows, headers=_HEADS, tablefmt="plain", disable_numparse=True)
    return "\n".join([title, against, "", table, *(["", *notes] if notes else [])]) + "\n"


def _row(checked: Checked) -> list[str]:
    return [
        LABELS.get(checked.metric, checked.metric),
        _number(checked.baseline),
        _number(checked.value),
        _change(checked),
        checked.verdict,
    ]


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None else significant(value)


def _change(checked: Checked) -> str:
    if checked.change is None:
        return NOT_MEASURED
    text = f"{checked.change:+.1%}"
    return text if checked.ci95 is None else f"{text} ({checked.ci95[0]:+.1%} … {checked.ci95[1]:+.1%})"
