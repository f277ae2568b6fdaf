"""Reports in HTML: one file that opens from disk, with charts that need no network and tables that need no script."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from effprof import __version__
from effprof.analysis.compare import Comparison
from effprof.analysis.model import Analysis
from effprof.reports import facts
from effprof.reports import side_by_side as compared
from effprof.reports.html_charts import Charts
from effprof.reports.html_elements import script_json, scrolling, section, table, text
from effprof.reports.html_sections import SECTIONS
from effprof.reports.html_words import figures

EXTENSION = "html"


def render(analysis: Analysis) -> str:
    """The whole report of one run. What `analysis.timeline` holds is drawn; without it the page has no time axis."""
    charts = Charts(analysis)
    parts = [(name, title, part) for name, title, make in SECTIONS if (part := make(charts))]
    run = analysis.run
    name = run.model.get("name") or run.model.get("class") or run.id
    links = "".join(f'<li><a href="#{identifier}">{text(title)}</a></li>' for identifier, title, _ in parts)
    head = (
        f'<p class="sub"><span class="badge {text(run.ended)}">{text(run.ended)}</span> '
        f"{text(facts.headline(analysis), 600)}</p>"
        f'<p class="sub">{text(_when(analysis))}</p>'
    )
    body = f"{figures(analysis)}{''.join(part for _, _, part in parts)}"
    return _page(str(name), head, f'<nav aria-label="Sections"><ul>{links}</ul></nav>', body, charts.specifications)


def render_comparison(comparison: Comparison) -> str:
    """The whole report of several runs side by side, in tables."""
    names = compared.names(comparison)
    runs = table(
        ["", "run"],
        [(name, compared.describe(run)) for name, run in zip(names, comparison.runs, strict=True)],
        text_columns=(1,),
    )
    differences = compared.difference_rows(comparison)
    shares = compared.account_rows(comparison)
    parts = [
        section("runs", "Runs", "", scrolling(runs, "Runs")),
        section(
            "differences",
            "Configured differently",
            "" if differences else "Nothing, as far as the records say.",
            scrolling(table(["", *names], differences), "Differences") if differences else "",
            is_card=bool(differences),
        ),
        section(
            "figures",
            "Figures",
            f"× ratio to {names[0]}",
            scrolling(table(["", *names], compared.metric_rows(comparison)), "Figures"),
        ),
    ]
    if shares:
        parts.append(
            section("account", "Share of the wall clock", "", scrolling(table(["", *names], shares), "Share of time"))
        )
    if comparison.warnings:
        items = "".join(f"<li>{text(warning.message, 1000)}</li>" for warning in comparison.warnings)
        parts.append(section("warnings", "Warnings", "", f'<ul class="warnings">{items}</ul>', is_card=False))
    return _page("Comparison", f'<p class="sub">{len(names)} runs</p>', "", "".join(parts), {})


def _when(analysis: Analysis) -> str:
    run = analysis.run
    attempts = f" · {run.attempts} attempts" if run.attempts > 1 else ""
    reason = f" · {run.ended_reason}" if run.ended_reason else ""
    return f"run {run.id} · {run.started_at} to {run.ended_at}{attempts}{reason}"


def _page(title: str, head: str, navigation: str, body: str, charts: dict[str, dict[str, object]]) -> str:
    library, script, style = _asset("echarts.min.js"), _asset("report.js"), _asset("report.css")
    # only the two scripts of this file may run, and nothing may be fetched from anywhere
    policy = (
        f"default-src 'none'; script-src '{_digest(library)}' '{_digest(script)}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    shown = text(title, 120)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="effprof {text(__version__)}">
<title>{shown} · effprof</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the figures</a>
<header class="page-head wrap">
<div class="top"><div><h1>{shown}</h1>{head}</div><button type="button" id="theme" hidden>Dark theme</button></div>
{navigation}
</header>
<main id="content" class="wrap" tabindex="-1">
<noscript><p class="lead">Charts need JavaScript; every number is in the tables below them.</p></noscript>
{body}
</main>
<footer class="wrap">Made by effprof {text(__version__)}. This file holds all it needs and fetches nothing.
Charts: Apache ECharts.</footer>
<div id="live" class="sr" aria-live="polite"></div>
<script type="application/json" id="data">{script_json({"charts": charts})}</script>
<script>{library}</script>
<script>{script}</script>
</body>
</html>
"""


@cache
def _asset(name: str) -> str:
    content = files("effprof.reports").joinpath("assets").joinpath(name).read_text(encoding="utf-8").strip()
    if "</script" in content or "<!--" in content or "</style" in content:
        raise AssertionError(f"{name} would end the element it stands in")
    return content


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
