"""The tuning loop over real processes whose speeds are known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from effprof.advise.calibration import load_calibration
from effprof.advise.gains import gain_from_removed_share
from effprof.advise.registry import all_rules
from effprof.advise.rule import RULES, Match, Threshold, rule
from effprof.advise.tune import tune
from effprof.analysis.model import Analysis

TRAINING = Path(__file__).resolve().parents[2] / "support" / "recorded_training.py"


@pytest.fixture
def calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "calibration.jsonl"
    monkeypatch.setenv("EFFPROF_CALIBRATION", str(path))
    return path


def test_a_confirmed_change_is_kept_and_the_path_told(tmp_path: Path, calibration: Path) -> None:
    told: list[str] = []
    tuned = tune([sys.executable, str(TRAINING), "0.6"], tmp_path / "trials", budget_s=60, progress=told.append)
    step = next(each for each in tuned.steps if each.finding == "in-workers")
    assert step.kept
    assert step.verdict == "confirmed"
    assert step.obtained is not None
    assert step.obtained.value == pytest.approx(1 / 0.6 - 1, rel=0.1)
    assert tuned.final.changes["num_workers"] == 3
    assert any("num_workers=3" in snippet for snippet in tuned.final.knobs["lightning"])
    assert tuned.final.tokens_per_s is not None
    assert tuned.baseline.tokens_per_s is not None
    assert tuned.final.tokens_per_s > 1.4 * tuned.baseline.tokens_per_s
    assert any("in-workers: confirmed" in text for text in told)
    assert load_calibration().trials["in-workers"][0].obtained == pytest.approx(step.obtained.value)
    document = msgspec.to_builtins(tuned)
    assert {"baseline", "final", "steps"} <= set(document)
    assert set(document["baseline"]) == {"tokens_per_s"}
    assert {"finding", "predicted", "obtained", "kept", "verdict"} <= set(document["steps"][0])


def test_a_change_that_slows_is_not_kept(tmp_path: Path, calibration: Path) -> None:
    tuned = tune([sys.executable, str(TRAINING), "1.3"], tmp_path / "trials", budget_s=60)
    step = next(each for each in tuned.steps if each.finding == "in-workers")
    assert (step.verdict, step.kept) == ("refuted", False)
    assert tuned.final.changes == {}
    assert tuned.final.tokens_per_s == tuned.baseline.tokens_per_s
    assert "no finding above the noise" in tuned.stopped


@pytest.fixture
def second_rule() -> Any:
    """A rule that always finds something, beside those of the package."""
    all_rules()
    limit = Threshold("account.wall_s", 0.0, "s", "always")

    @rule(
        "test-second",
        area="kernels",
        title="second",
        symptom="always there",
        thresholds=[limit],
        lever="collect more rarely",
        frameworks={"pytorch": "gc.disable()"},
        gain_basis="for the test",
        risk="none",
        risk_level="low",
        sources=["https://docs.python.org/3/library/gc.html"],
    )
    def second(run: Analysis) -> Match:
        gain = gain_from_removed_share(0.2, (0.5, 0.9, 1.0))
        return Match(
            evidence=[limit.saw(run.account.wall_s)],
            gain=gain,
            knobs={"pytorch": "gc.disable()"},
            changes={"gc_every_n_steps": 50},
        )

    all_rules.cache_clear()
    yield
    del RULES["test-second"]
    all_rules.cache_clear()


def test_changes_accumulate_and_the_whole_is_tested(tmp_path: Path, calibration: Path, second_rule: Any) -> None:
    told: list[str] = []
    tuned = tune([sys.executable, str(TRAINING), "0.6"], tmp_path / "trials", budget_s=120, progress=told.append)
    assert {step.finding for step in tuned.steps if step.kept} == {"in-workers", "test-second"}
    assert {"num_workers", "gc_every_n_steps"} <= set(tuned.final.changes)
    assert tuned.gain is not None
    assert tuned.gain.value == pytest.approx(1 / (0.6 * 0.8) - 1, rel=0.1)
    assert "testing the whole against the training as it was" in told


def test_a_whole_that_is_slower_falls_back_to_what_was_proven(
    tmp_path: Path, calibration: Path, second_rule: Any
) -> None:
    tuned = tune([sys.executable, str(TRAINING), "0.6", "drifting"], tmp_path / "trials", budget_s=120)
    assert [step.finding for step in tuned.steps if step.kept] == ["in-workers"]
    assert "gc_every_n_steps" not in tuned.final.changes
    assert "back to in-workers alone" in tuned.stopped
    assert tuned.final.tokens_per_s is not None
    assert tuned.baseline.tokens_per_s is not None
    assert tuned.final.tokens_per_s > tuned.baseline.tokens_per_s
