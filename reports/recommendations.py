"""What `effprof recommend` prints: every finding whole, for a terminal, in Markdown or as JSON."""

from __future__ import annotations

import msgspec

from effprof.advise.recommend import Recommendations
from effprof.reports import findings_markdown, findings_text
from effprof.reports.markdown_elements import escape
from effprof.reports.text import clean, plural, wrap


def render(found: Recommendations, framework: str, *, as_json: bool = False, as_markdown: bool = False) -> str:
    """The recommendations as text.

    Args:
        framework: of the run, which picks the snippet.
    """
    if as_json:
        return msgspec.json.encode(found).decode() + "\n"
    counts = f"{plural(len(found.findings), 'finding')}, {plural(len(found.silent), 'rule')} silent"
    if as_markdown:
        parts = findings_markdown.parts(found.findings, found.not_evaluated, framework=framework, path=found.path)
        title = escape(clean(found.run))
        return "\n\n".join(part for part in [f"## {title}", f"{counts}.", *parts] if part) + "\n"
    lines = findings_text.lines(
        found.findings, found.not_evaluated, framework=framework, path=found.path, is_whole=True
    )
    head = wrap(f"{clean(found.run)} · {clean(found.path)} · {counts}", "run")
    return "\n".join([*head, "", *lines]) + "\n"
