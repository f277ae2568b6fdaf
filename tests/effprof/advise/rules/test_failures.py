"""Rules on failures: each with a run that provokes it and one on which it stays silent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from effprof.advise.rule import Missing
from tests.support.advised_runs import assert_bounded, found

STEP = {"forward": 0.3, "backward": 0.7, "tokens": 40.0}


@pytest.fixture
def make(tmp_path: Path, hand_made: Any) -> Any:
    def run(name: str, steps: Any = None, **rank: Any) -> Any:
        return hand_made(tmp_path / name, name).record().rank(steps or [STEP] * 98, **rank)

    return run


def resumed(run: Any, at_s: float, first_step: int, steps: Any = None) -> Any:
    """The run with a second attempt that begins at a second of the wall clock, from a step."""
    return run.rank(steps or [STEP] * 98, attempt=1, start_s=at_s, first_step=first_step)


def test_long_restarts(make: Any) -> None:
    # an attempt takes 100 s, the next begins 50 s later
    finding = found(resumed(make("a", end=None), 150.0, 99), "good-restart")
    assert finding is not None
    assert_bounded(finding)
    assert finding.gain.bound == pytest.approx(250 / 200 - 1, rel=0.02)
    assert found(resumed(make("quick", end=None), 101.0, 99), "good-restart") is None
    assert found(make("whole"), "good-restart") is None


def test_lost_steps(make: Any) -> None:
    finding = found(resumed(make("a", end=None), 101.0, 49), "good-lost-steps")
    assert finding is not None
    assert_bounded(finding)
    assert found(resumed(make("none", end=None), 101.0, 99), "good-lost-steps") is None
    saving = [{**STEP, "checkpoint": 1.0}] * 98
    dear = resumed(make("dear", saving, end=None), 200.0, 49)
    assert found(dear, "good-lost-steps") is None, "more checkpoints would cost more than they save"


def test_checkpoint_interval(make: Any) -> None:
    # 200 saves of 1 s in 400 s with one failure: every 2 s, where sqrt(2 · 1 s · 400 s) = 28 s is best
    saving = [{**STEP, "checkpoint": 1.0}] * 98
    run = resumed(make("a", saving, end=None), 200.0, 99, saving)
    finding = found(run, "good-checkpoint-interval")
    assert finding is not None
    assert_bounded(finding)
    values = {each.metric: each.value for each in finding.evidence}
    between = values["time between failures"]
    assert values["best interval"] == pytest.approx(math.sqrt(2 * 1.0 * between), rel=0.02)
    best = 1 / values["best interval"] + values["best interval"] / (2 * between)
    now = 1 / values["checkpoint interval"] + values["checkpoint interval"] / (2 * between)
    assert finding.gain.bound == pytest.approx((1 - best) / (1 - now) - 1, rel=0.05)
    with pytest.raises(Missing, match="failure"):
        found(make("whole", saving), "good-checkpoint-interval")


def test_a_good_checkpoint_interval(make: Any) -> None:
    saving = [{**STEP, "checkpoint": 1.0} if step % 20 == 19 else STEP for step in range(98)]
    assert found(resumed(make("a", saving, end=None), 105.0, 99, saving), "good-checkpoint-interval") is None


def test_hang(make: Any) -> None:
    silent = make("a", tail=[("unattributed", 200.0)], end="failed", reason="timeout")
    finding = found(silent, "good-hang")
    assert finding is not None
    assert_bounded(finding)
    assert found(make("done", tail=[("unattributed", 200.0)]), "good-hang") is None
    assert found(make("quick", tail=[("unattributed", 5.0)], end="failed"), "good-hang") is None
    evaluating = make("busy", tail=[("evaluation", 200.0)], end="failed")
    assert found(evaluating, "good-hang") is None, "it was at work"


def with_losses(losses: list[float]) -> list[dict[str, float]]:
    return [{**STEP, "loss": loss} for loss in losses]


def falling(steps: int = 98) -> list[float]:
    """A loss that falls as trainings' do, with noise of 1 %."""
    return [2 + 3 * math.exp(-step / 30) + 0.02 * math.sin(7.0 * step) for step in range(steps)]


def test_loss_spike(make: Any) -> None:
    spiking = falling()
    spiking[60:66] = [6.0, 5.5, 5.0, 4.5, 4.0, 3.5]
    finding = found(make("a", with_losses(spiking)), "good-loss-spike")
    assert finding is not None
    assert finding.gain.bound == 0, "a record does not tell what a spike cost"
    assert found(make("calm", with_losses(falling())), "good-loss-spike") is None
    single = falling()
    single[60] = 6.0
    assert found(make("single", with_losses(single)), "good-loss-spike") is None, "one batch is no spike"


def test_losses_must_be_on_record(make: Any) -> None:
    with pytest.raises(Missing, match="loss"):
        found(make("a"), "good-loss-spike")
