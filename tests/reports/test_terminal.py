"""What a person sees in a terminal, held as snapshots in tests/data/reports.

To accept an intended change: EFFPROF_ACCEPT_SNAPSHOTS=1 python -m pytest tests/reports, and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

from effprof.analysis.analyze import Examined
from effprof.analysis.compare import compare
from effprof.analysis.model import Analysis
from effprof.reports import terminal

SNAPSHOTS = Path(__file__).parents[1] / "data" / "reports"


def assert_snapshot(name: str, text: str) -> None:
    path = SNAPSHOTS / name
    if os.environ.get("EFFPROF_ACCEPT_SNAPSHOTS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_a_full_report(moe_analysis: Analysis) -> None:
    assert_snapshot("moe.txt", terminal.render(moe_analysis))


def test_a_report_that_lacks_nearly_everything_says_why(cpu_analysis: Analysis) -> None:
    text = terminal.render(cpu_analysis)
    assert_snapshot("cpu.txt", text)
    assert "not measured: the model uses a custom kernel" in text
    assert "flops_per_step=" in text


def test_the_summary_has_at_most_eight_lines(moe_analysis: Analysis, cpu_analysis: Analysis) -> None:
    text = terminal.summary(moe_analysis)
    assert_snapshot("moe_summary.txt", text + "\n")
    for short in (text, terminal.summary(cpu_analysis)):
        assert len(short.splitlines()) <= 8
        assert max(map(len, short.splitlines())) <= 110


def test_a_comparison(two_runs: list[Examined]) -> None:
    text = terminal.render_comparison(compare(two_runs))
    assert_snapshot("comparison.txt", text)
    assert text.index("configured differently") < text.index("figures")
    assert "no significant difference" in text


def test_every_line_fits(
    moe_analysis: Analysis, cpu_analysis: Analysis, hostile_analysis: Analysis, two_runs: list[Examined]
) -> None:
    texts = [terminal.render(analysis) for analysis in (moe_analysis, cpu_analysis, hostile_analysis)]
    texts += [terminal.render_comparison(compare(two_runs)), terminal.render_comparison(compare(two_runs * 3))]
    for text in texts:
        assert max(map(len, text.splitlines())) <= 110


def test_strings_from_a_log_cannot_drive_the_terminal(hostile_analysis: Analysis) -> None:
    for text in (terminal.render(hostile_analysis), terminal.summary(hostile_analysis)):
        assert all(line.isprintable() for line in text.split("\n"))
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_a_share_of_a_measured_ceiling_is_not_called_mfu(moe_analysis: Analysis) -> None:
    share = moe_analysis.efficiency.mfu
    share.peak_kind, share.peak_source = "measured_ceiling", "measured ceiling (best of five)"
    text = terminal.render(moe_analysis)
    assert "\nMFU" not in text
    assert "share of measured ceiling" in text
