"""The tuning loop over real processes whose speeds are known."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from effprof.advise.calibration import load_calibration
from effprof.advise.tune import tune

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
