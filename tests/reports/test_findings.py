"""Findings in every output: ranked, bounded, with a knob that fits the run, and harmless whatever a log holds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from effprof.analysis.model import Analysis, Evidence, Finding, Gain, NotEvaluated
from effprof.reports import findings, html, markdown, terminal

BAD = "\x1b[2J</script><script>alert(1)</script> ``` | **b** `c`"


def finding(name: str = "mem-recompute-selective", **fields: Any) -> Finding:
    values: dict[str, Any] = {
        "area": "memory",
        "title": "recompute only attention: 18 GiB are free",
        "evidence": [Evidence(metric="memory.free", value=0.22, unit="share", threshold=0.15)],
        "lever": "recompute attention only",
        "knobs": {"pytorch": "checkpoint(block, x)", "lightning": "Trainer(strategy=FSDPStrategy())"},
        "gain": Gain(low=0.08, likely=0.11, high=0.13, bound=0.3),
        "memory_effect_bytes": None,
        "risk": "memory grows",
        "sources": ["https://example.org/a"],
        "changes": {"gradient_checkpointing": "selective"},
    }
    return Finding(id=name, **{**values, **fields})


@pytest.fixture
def advised(moe_analysis: Analysis) -> Analysis:
    second = finding("good-eval", title="evaluate less often", changes={}, gain=Gain(low=0.03, likely=0.06, high=0.09,
        bound=0.1, basis="wall"))  # fmt: skip
    moe_analysis.findings = [finding(), second]
    window = "EfficiencyCallback(kernel_window=True)"
    moe_analysis.not_evaluated = [
        NotEvaluated(rule=f"k{n}", missing="a kernel window", record=window) for n in range(4)
    ] + [NotEvaluated(rule="x", missing="the setting `y`", record="train again")]
    return moe_analysis


def test_terminal_has_the_design_s_section(advised: Analysis) -> None:
    out = terminal.render(advised)
    assert "what would change it (predicted, not verified yet)" in out
    assert "1  +11 % (8 … 13)" in out
    assert "recompute only attention: 18 GiB are free" in out
    assert "2  +6 % (3 … 9) of the wall clock" in out
    assert "       Trainer(strategy=FSDPStrategy())" in out
    assert "verify: effprof verify runs/moe-24l --finding mem-recompute-selective -- python train.py" in out
    assert "--finding good-eval" not in out, "only a person can make that change"
    assert "4 rules need a kernel window: EfficiencyCallback(kernel_window=True)" in out
    assert "1 rule needs the setting `y`: train again" in out
    assert "apply the first, then measure again" in out


def test_nothing_is_said_before_rules_have_looked(moe_analysis: Analysis) -> None:
    assert "what would change it" not in terminal.render(moe_analysis)
    assert "hat would change it" not in markdown.render(moe_analysis)


def test_a_run_without_a_symptom(advised: Analysis) -> None:
    advised.findings = []
    assert "nothing: no rule found its symptom" in terminal.render(advised)
    assert "Nothing: no rule found its symptom" in markdown.render(advised)


def test_long_lists_are_cut_in_an_analysis(advised: Analysis) -> None:
    advised.findings = [finding(f"f-{n}") for n in range(9)]
    out = terminal.render(advised)
    assert "--finding f-5" in out
    assert "--finding f-6" not in out
    assert "… 3 more findings: effprof recommend runs/moe-24l" in out


def test_markdown_and_html(advised: Analysis) -> None:
    text = markdown.render(advised)
    assert "### What would change it (predicted, not verified yet)" in text
    assert "```\nTrainer(strategy=FSDPStrategy())\n# effprof verify runs/moe-24l" in text
    page = html.render(advised)
    assert "1. recompute only attention: 18 GiB are free" in page
    assert "effprof verify runs/moe-24l --finding mem-recompute-selective -- python train.py" in page
    assert "In other frameworks" in page
    assert "4 rules need a kernel window" in page


@pytest.mark.parametrize(
    ("framework", "expected"),
    [
        ("pytorch-lightning", "Trainer(strategy=FSDPStrategy())"),
        ("lightning", "Trainer(strategy=FSDPStrategy())"),
        ("pytorch", "checkpoint(block, x)"),
        ("transformers", "checkpoint(block, x)"),
        ("nanoGPT", "checkpoint(block, x)"),
    ],
)
def test_the_snippet_fits_the_framework(framework: str, expected: str) -> None:
    assert findings.snippet(finding(), framework)[1] == expected


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.08, 0.11, 0.13, 0.3), "+11 % (8 … 13)"),
        ((-0.02, 0.004, 0.05, 0.3), "+0.4 % (-2 … 5)"),
        ((-0.05, -0.03, 0.0, 0.3), "-3 % (-5 … 0)"),
        ((0.0, 0.0, 0.0, 0.0), "no speed"),
    ],
)
def test_gains_as_words(values: tuple[float, float, float, float], text: str) -> None:
    low, likely, high, bound = values
    assert findings.gain_text(Gain(low=low, likely=likely, high=high, bound=bound)) == text


def test_verified_findings_ask_for_no_trial(advised: Analysis) -> None:
    advised.findings = [msgspec.structs.replace(finding(), verified=True)]
    out = terminal.render(advised)
    assert "what would change it (verified in trials)" in out
    assert "verify: " not in out


def test_hostile_strings_stay_text(advised: Analysis) -> None:
    knobs = {"lightning": BAD, "pytorch": BAD}
    hostile = finding(BAD, title=BAD, lever=BAD, risk=BAD, sources=[BAD], knobs=knobs, area=BAD)
    hostile.evidence = [Evidence(metric=BAD, value=None, unit=BAD)]
    advised.run.path = BAD
    advised.findings = [hostile]
    advised.not_evaluated = [NotEvaluated(rule=BAD, missing=BAD, record=BAD)]
    assert "\x1b" not in terminal.render(advised)
    assert "<script>alert" not in html.render(advised)
    text = markdown.render(advised)
    assert "\x1b" not in text
    outside = "".join(text.split("````")[0::2])
    assert "<script>alert" not in outside
