"""Verifications and tunings as text."""

from __future__ import annotations

import re

from effprof.advise.tune import Final, Tuned, TunedRate, TuneStep
from effprof.advise.verification import LossCheck, Obtained, SegmentFigures, Verification
from effprof.analysis.model import Gain
from effprof.reports import trials

GAIN = Gain(low=0.1, likely=0.2, high=0.3, bound=0.4)


def verification() -> Verification:
    return Verification(
        finding="prec-bf16",
        changes={"precision": "bf16-mixed"},
        predicted=GAIN,
        obtained=Obtained(value=0.25, ci95=(0.2, 0.3)),
        verdict="confirmed",
        reason="the whole interval is above zero",
        before=1000.0,
        after=1250.0,
        loss=LossCheck(before=2.0, after=2.5, difference=0.25, allowed=0.01, steps=80, is_damaged=True),
        segments=[
            SegmentFigures(side="before", rate=1000.0, steps=80, seconds=8.0, wall_s=12.0, outcome="ok"),
            SegmentFigures(
                side="after", rate=None, steps=0, seconds=0, wall_s=3, outcome="failed", reason="\x1b[31mred"
            ),
        ],
        trials="runs/a/trials",
        seconds=15.0,
    )


def tuned() -> Tuned:
    steps = [
        TuneStep(
            finding="in-workers",
            predicted=GAIN,
            predicted_from_record=GAIN,
            obtained=Obtained(value=0.25, ci95=(0.2, 0.3)),
            kept=True,
            verdict="confirmed",
        ),
        TuneStep(
            finding="prec-bf16",
            predicted=GAIN,
            predicted_from_record=GAIN,
            obtained=None,
            kept=False,
            verdict="failed",
            reason="with the change: out of memory",
        ),
    ]
    final = Final(tokens_per_s=1250.0, changes={"num_workers": 2}, knobs={"lightning": ["DataLoader(num_workers=2)"]})
    return Tuned(
        baseline=TunedRate(tokens_per_s=1000.0),
        final=final,
        steps=steps,
        stopped="nothing is left",
        trials="t",
        gain=steps[0].obtained,
    )


def test_a_damaged_loss_stands_beside_the_verdict() -> None:
    text = trials.render_verification(verification())
    assert text.startswith("effprof verify: confirmed, but the loss is damaged")
    assert "2 → 2.5 over 80 steps: +25.00%" in text
    assert "+20.0% (+10.0% … +30.0%)" in text
    assert "+25.0% (+20.0% … +30.0%)" in text
    assert "\x1b" not in text


def test_the_path_of_a_tuning_ends_with_what_to_write() -> None:
    text = trials.render_tuned(tuned())
    assert text.startswith("effprof tune: 1,000 tokens/s → 1,250 tokens/s · +25.0%")
    assert "prec-bf16: with the change: out of memory" in " ".join(text.split())
    assert "write into your script:\n  DataLoader(num_workers=2)" in text


def test_markdown_holds_tables() -> None:
    shown = trials.render_verification(verification(), as_markdown=True)
    assert re.search(r"^\| finding +\| prec-bf16 +\|$", shown, re.MULTILINE)
    text = trials.render_tuned(tuned(), as_markdown=True)
    assert "| in-workers |" in text
    assert "```python\nDataLoader(num_workers=2)\n```" in text


def test_a_tuning_that_kept_nothing_says_so() -> None:
    nothing = Tuned(baseline=TunedRate(samples_per_s=12.0), final=Final(samples_per_s=12.0), stopped="no finding")
    assert trials.render_tuned(nothing).startswith("effprof tune: 12.0 samples/s, nothing kept")
