"""Findings in Markdown: a table to read, a list to paste from."""

from __future__ import annotations

from collections.abc import Sequence

from effprof.analysis.model import Finding, NotEvaluated
from effprof.reports import findings as words
from effprof.reports.markdown_elements import escape, table
from effprof.reports.text import clean


def parts(found: Sequence[Finding], missing: Sequence[NotEvaluated], *, framework: str, path: str) -> list[str]:
    """The section's paragraphs; none where no rule has looked at the run."""
    if not found and not missing:
        return []
    title = words.heading(found) if found else words.TITLE
    text = [f"### {title[0].upper()}{title[1:]}"]
    if found:
        rows = [
            (
                str(rank),
                words.gain_text(each.gain),
                clean(each.title),
                clean(each.id),
                clean(words.evidence_text(each), 600),
                clean(each.risk_level),
            )
            for rank, each in enumerate(found, start=1)
        ]
        text += [table(["", "gain", "finding", "rule", "evidence", "risk"], rows)]
        text += [_how(rank, each, framework, path) for rank, each in enumerate(found, start=1)]
        text += [f"{words.ORDER[0].upper()}{words.ORDER[1:]}."] if len(found) > 1 else []
    else:
        text.append("Nothing: no rule found its symptom.")
    return [*text, "\n".join(f"- {escape(line)}" for line in words.missing_texts(missing))]


def _how(rank: int, finding: Finding, framework: str, path: str) -> str:
    _, knob = words.snippet(finding, framework)
    command = words.verify_command(finding, path)
    code = [*(clean(line, 400) for line in knob.splitlines()), *([f"# {command}"] if command else [])]
    # a fence longer than any run of backticks inside cannot be closed from within
    fence = "`" * max(3, 1 + max((len(run) for line in code for run in _ticks(line)), default=0))
    body = "\n".join([fence, *code, fence]) if code else ""
    sources = " ".join(f"<{clean(url)}>" if _is_plain(url) else escape(clean(url)) for url in finding.sources)
    risk = escape(clean(finding.risk, 600))
    return f"**{rank}. {escape(clean(finding.lever, 600))}**\n\n{body}\n\nRisk: {risk}. Source: {sources}"


def _ticks(line: str) -> list[str]:
    return ["`" * len(run) for run in "".join(letter if letter == "`" else " " for letter in line).split()]


def _is_plain(url: str) -> bool:
    return url.startswith(("https://", "http://")) and not set(url) & set(" <>\"'`\\")
