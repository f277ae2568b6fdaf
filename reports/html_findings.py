"""What would change the figures, as a part of the HTML page. Every string of a log or a rule is escaped here."""

from __future__ import annotations

from effprof.analysis.model import Finding
from effprof.reports import findings as words
from effprof.reports.html_charts import Charts
from effprof.reports.html_elements import folded, pairs, section, text


def findings(charts: Charts) -> str:
    """Findings in the order in which to try them, then what could not be judged."""
    analysis = charts.analysis
    found, missing = analysis.findings, words.missing_texts(analysis.not_evaluated)
    if not found and not missing:
        return section("findings", "Findings", "", '<p class="empty">No findings are attached to this analysis.</p>')
    run = analysis.run
    shown = "".join(_finding(rank, each, run.framework, run.path) for rank, each in enumerate(found, start=1))
    items = "".join(f"<li>{text(line, 600)}</li>" for line in missing)
    unknown = folded("Rules that could not be evaluated", f"<ul>{items}</ul>") if missing else ""
    lead = f"{words.heading(found)}; {words.ORDER}." if found else "No rule found its symptom."
    return section("findings", "Findings", f"{lead[0].upper()}{lead[1:]}", f"{shown}{unknown}")


def _finding(rank: int, finding: Finding, framework: str, path: str) -> str:
    command = words.verify_command(finding, path)
    entries = [
        ("gain", words.gain_text(finding.gain)),
        ("evidence", words.evidence_text(finding)),
        ("lever", finding.lever),
        ("risk", f"{finding.risk_level}: {finding.risk}"),
        ("calibration", words.trials_text(finding)),
        ("sources", " · ".join(finding.sources)),
    ]
    name, knob = words.snippet(finding, framework)
    how = _code(name, knob) + (_code("verify", command) if command else "")
    others = "".join(_code(each, line) for each, line in words.knobs_text(finding.knobs) if each != name)
    more = folded("In other frameworks", others) if others else ""
    title = f"{rank}. {finding.title}"
    facts = pairs([(label, value) for label, value in entries if value])
    return f'<article class="finding"><h3>{text(title)}</h3>{facts}{how}{more}</article>'


def _code(name: str, code: str) -> str:
    lines = "\n".join(text(line, 400) for line in code.splitlines())
    return f"<h4>{text(name)}</h4><pre><code>{lines}</code></pre>" if code else ""
