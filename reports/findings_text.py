"""Findings in a terminal: ranked, each with its gain, the knob to paste and the command that verifies it."""

from __future__ import annotations

from collections.abc import Sequence

from effprof.analysis.model import Finding, NotEvaluated
from effprof.reports import findings as words
from effprof.reports.text import WIDTH, clean, plural, wrap

MAX_SHOWN = 6  # of an analysis; `effprof recommend` lists all


def lines(
    found: Sequence[Finding],
    missing: Sequence[NotEvaluated],
    *,
    framework: str,
    path: str,
    is_whole: bool = False,
) -> list[str]:
    """The section's lines; none where no rule has looked at the run.

    Args:
        is_whole: every finding with evidence, lever, risk and sources, as `effprof recommend` shows it.
    """
    if not found and not missing:
        return []
    if not found:
        return [words.TITLE, "  nothing: no rule found its symptom", *_missing(missing)]
    shown = found if is_whole else found[:MAX_SHOWN]
    width = max(len(words.gain_text(each.gain)) for each in shown)
    text = [words.heading(shown)]
    for rank, finding in enumerate(shown, start=1):
        head = f"{rank:>3}  {words.gain_text(finding.gain):<{width}}  "
        text += wrap(clean(finding.title), head, len(head))
        text += _body(finding, framework, path, is_whole)
    if len(found) > len(shown):
        text.append(f"  … {plural(len(found) - len(shown), 'more finding')}: effprof recommend {clean(path)}")
    if len(found) > 1:
        text += wrap(words.ORDER, "  ", 2)
    return [*text, *_missing(missing)]


def _body(finding: Finding, framework: str, path: str, is_whole: bool) -> list[str]:
    indent = "       "
    name, knob = words.snippet(finding, framework)
    text = [f"{indent}{clean(line, WIDTH * 2)}" for line in knob.splitlines()]
    if is_whole:
        others = [f"{each}: {line}" for each, line in words.knobs_text(finding.knobs) if each != name]
        details = [
            ("rule", f"{finding.id} ({finding.area})"),
            ("evidence", words.evidence_text(finding)),
            ("lever", finding.lever),
            ("elsewhere", " · ".join(others)),
            ("risk", f"{finding.risk_level}: {finding.risk}"),
            ("calibration", words.trials_text(finding)),
            ("source", " ".join(finding.sources)),
        ]
        for label, value in details:
            text += wrap(clean(value, 1000), f"{indent}{label:<13}", len(indent) + 13) if value else []
    command = words.verify_command(finding, path)
    return [*text, *([f"{indent}verify: {command}"] if command else [])]


def _missing(missing: Sequence[NotEvaluated]) -> list[str]:
    return [line for text in words.missing_texts(missing) for line in wrap(text, "  -", 4)]
