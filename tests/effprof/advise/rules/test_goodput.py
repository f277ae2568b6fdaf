"""Rules on the wall clock outside the steps: each with a run that provokes it and one on which it stays silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effprof.advise.rule import Missing
from tests.support.advised_runs import assert_bounded, found

STEP = {"forward": 0.3, "backward": 0.7, "tokens": 40.0}


@pytest.fixture
def make(tmp_path: Path, hand_made: Any) -> Any:
    def run(name: str, steps: Any = None, config: Any = None, **rank: Any) -> Any:
        made = hand_made(tmp_path / name, name).record(config=config or {})
        return made.rank(steps or [STEP] * 98, **rank)

    return run


def test_blocking_checkpoints(make: Any) -> None:
    ten = {"tail": [("checkpoint", 10.0)]}
    finding = found(make("a", config={"async_checkpoint": False}, **ten), "good-async-checkpoint")
    assert finding is not None
    assert_bounded(finding)
    assert finding.gain.basis == "wall"
    assert finding.gain.bound == pytest.approx(110 / 100 - 1, rel=0.01)
    assert found(make("b", config={"async_checkpoint": True}, **ten), "good-async-checkpoint") is None
    short = make("c", config={"async_checkpoint": False}, tail=[("checkpoint", 0.5)])
    assert found(short, "good-async-checkpoint") is None
    with pytest.raises(Missing, match="async_checkpoint"):
        found(make("d", **ten), "good-async-checkpoint")


def test_much_evaluation(make: Any) -> None:
    finding = found(make("a", config={"val_batches": 40}, tail=[("evaluation", 100.0)]), "good-evaluation")
    assert finding is not None
    assert finding.gain.high == pytest.approx(1 / 0.75 - 1, rel=0.01), "half of the evaluation is a quarter of the run"
    assert finding.gain.high - finding.gain.low < 0.15
    assert finding.knobs["lightning"] == "Trainer(limit_val_batches=20)"
    assert found(make("b", tail=[("evaluation", 5.0)]), "good-evaluation") is None


def test_long_startup(make: Any) -> None:
    finding = found(make("a", startup_s=400.0), "good-startup")
    assert finding is not None
    assert_bounded(finding)
    assert found(make("short", startup_s=60.0), "good-startup") is None, "a minute is how trainings start"
    assert found(make("long", [STEP] * 9000, startup_s=400.0), "good-startup") is None, "it is little of a long run"


def test_dear_logging(make: Any) -> None:
    logging = [{**STEP, "logging": 0.1}] * 98
    finding = found(make("a", logging, {"log_every_n_steps": 10}), "good-logging")
    assert finding is not None
    assert_bounded(finding)
    assert finding.changes == {"log_every_n_steps": 50}
    assert finding.gain.high - finding.gain.low < 0.03
    assert found(make("often", logging, {"log_every_n_steps": 1}), "good-logging") is None, "ker-log-often says it"
    rare = found(make("rare", logging, {"log_every_n_steps": 50}), "good-logging")
    assert rare is not None
    assert rare.changes == {"log_every_n_steps": 200}
    assert found(make("quick", [{**STEP, "logging": 0.001}] * 98, {"log_every_n_steps": 10}), "good-logging") is None


def test_busy_hooks(make: Any) -> None:
    hooks = [{**STEP, "other": 0.2}] * 98
    finding = found(make("a", hooks, {"callbacks": ["EveryWeight"]}), "good-callbacks")
    assert finding is not None
    assert_bounded(finding)
    assert finding.changes == {"disable_callbacks": ["EveryWeight"]}
    profiled = found(make("b", hooks, {"callbacks": [], "profiler": "AdvancedProfiler"}), "good-callbacks")
    assert profiled is not None
    assert profiled.changes == {}, "a trial cannot take the profiler out"
    assert "AdvancedProfiler" in profiled.title
    assert found(make("none", hooks, {"callbacks": []}), "good-callbacks") is None
    quick = [{**STEP, "other": 0.01}] * 98
    assert found(make("quick", quick, {"callbacks": ["EveryWeight"]}), "good-callbacks") is None
