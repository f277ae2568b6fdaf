"""Known delays in real Lightning trainings land in the line of the account where they belong; all cases: benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "attribution.py"
CASES = ("input_sleep", "checkpoint_sleep", "busy_step_window", "crashed")


@pytest.mark.filterwarnings("ignore")
def test_injected_seconds_land_in_their_line(tmp_path: Path) -> None:
    out = tmp_path / "attribution.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--out", str(out), "--repeats", "1", "--cases", *CASES],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=900,
    )
    assert out.exists(), done.stderr[-3000:]
    outcomes = {(o["case"], o["line"]): o for o in json.loads(out.read_text())["outcomes"]}
    assert set(outcomes) == {
        ("input_sleep", "step.input_wait"),
        ("checkpoint_sleep", "checkpoint"),
        ("busy_step_window", "step.host_gap"),
        ("crashed", "lost_steps"),
        ("crashed", "restart"),
    }
    for outcome in outcomes.values():
        assert outcome["injected_s"] > 0.5, outcome
        assert 0.95 <= outcome["share"] <= 1.05, outcome
        assert outcome["unattributed"] <= 0.05, outcome
