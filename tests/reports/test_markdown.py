"""What a person sees in an issue or a wiki, held as snapshots in tests/data/reports."""

from __future__ import annotations

import os
import re
from pathlib import Path

from effprof.analysis.analyze import Examined
from effprof.analysis.compare import compare
from effprof.analysis.model import Analysis
from effprof.reports import markdown

SNAPSHOTS = Path(__file__).parents[1] / "data" / "reports"


def assert_snapshot(name: str, text: str) -> None:
    path = SNAPSHOTS / name
    if os.environ.get("EFFPROF_ACCEPT_SNAPSHOTS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_a_full_report(moe_analysis: Analysis) -> None:
    assert_snapshot("moe.md", markdown.render(moe_analysis))


def test_a_report_that_lacks_nearly_everything(cpu_analysis: Analysis) -> None:
    assert_snapshot("cpu.md", markdown.render(cpu_analysis))


def test_a_comparison(two_runs: list[Examined]) -> None:
    assert_snapshot("comparison.md", markdown.render_comparison(compare(two_runs)))


def test_strings_from_a_log_stay_text(hostile_analysis: Analysis) -> None:
    text = markdown.render(hostile_analysis)
    assert "\x1b" not in text
    unescaped = re.sub(r"\\.", "", text)
    assert "<script" not in unescaped
    assert "[l](" not in unescaped
    assert "**b**" not in unescaped
    assert "\n# h" not in text


def test_every_table_row_has_as_many_cells_as_its_head(hostile_analysis: Analysis, moe_analysis: Analysis) -> None:
    for analysis in (hostile_analysis, moe_analysis):
        cells = 0
        for line in markdown.render(analysis).splitlines():
            bare = re.sub(r"\\.", "", line)
            if not bare.startswith("|"):
                cells = 0
                continue
            cells = cells or bare.count("|")
            assert bare.count("|") == cells, line
