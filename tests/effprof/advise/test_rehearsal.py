"""What a rehearsal makes of a prediction, against closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from effprof.advise.rehearsal import Rehearsed, read_rehearsed, with_rehearsal, write_rehearsed
from effprof.analysis.model import Analysis, Finding, Gain
from tests.support.advised_runs import analysed, assert_bounded

STEP = {"input_wait": 0.1, "forward": 0.2, "backward": 0.4, "optimizer": 0.1, "other": 0.2, "tokens": 40.0}


@pytest.fixture
def analysis(hand_made: Any, tmp_path: Path) -> Analysis:
    """Steps of a second, 60 % of it forward and backward."""
    return analysed(hand_made(tmp_path / "run").record().rank([STEP] * 60))


def finding(changes: dict[str, Any], likely: float = 0.1) -> Finding:
    gain = Gain(low=likely / 2, likely=likely, high=2 * likely, bound=3 * likely, basis="steady")
    return Finding(
        id="a-rule",
        area="kernels",
        title="slow",
        evidence=[],
        lever="change it",
        knobs={},
        gain=gain,
        memory_effect_bytes=None,
        risk="none",
        sources=[],
        changes=changes,
    )


def rehearsed(changes: dict[str, Any], ratio: float, **more: Any) -> Rehearsed:
    return Rehearsed.of(changes, [ratio * each for each in (0.99, 1.0, 1.01, 1.0)], own_s=0.1, seconds=1.0, **more)


def test_rounds_give_the_median_with_an_interval() -> None:
    found = rehearsed({"threads": 1}, 0.5)
    assert found.ratio == pytest.approx(0.5)
    assert found.ci95 is not None
    # 3 degrees of freedom: 3.182 standard errors of the logarithms 0.01, 0, -0.01, 0
    half = 3.182 * math.sqrt(2 * 0.01**2 / 3 / 4)
    assert [math.log(each / 0.5) for each in found.ci95] == pytest.approx([-half, half], rel=1e-2)
    assert found.rounds == 4


def test_forward_and_backward_shrink_and_the_rest_stays(analysis: Analysis) -> None:
    changes = {"precision": "bf16-mixed"}
    changed = with_rehearsal(finding(changes), [rehearsed(changes, 0.5)], [analysis])
    assert changed.gain.likely == pytest.approx(1 / 0.7 - 1)
    assert_bounded(changed)
    assert changed.gain.high > finding(changes).gain.bound, "what was timed here beats a bound from machines in general"
    assert changed.evidence[-1].value == pytest.approx(0.5)
    assert 0.05 < changed.gain.high - changed.gain.low < 0.2
    assert changed.gain.basis == "steady"


def test_processes_that_agree_narrow_the_interval_and_others_widen_it(analysis: Analysis) -> None:
    changes = {"gradient_checkpointing": False}

    def width(*ratios: float) -> float:
        gain = with_rehearsal(finding(changes), [rehearsed(changes, each) for each in ratios], [analysis]).gain
        return gain.high - gain.low

    assert width(0.8, 0.8, 0.8) < width(0.8, 0.8) < width(0.8) < width(0.6, 1.0)


def test_the_interval_is_of_what_a_test_of_six_blocks_shows(analysis: Analysis) -> None:
    changes = {"precision": "bf16-mixed"}
    ratios = [0.5 * math.exp(each) for each in (-0.05, 0.05, -0.05, 0.05)]
    gain = with_rehearsal(finding(changes), [rehearsed(changes, each) for each in ratios], [analysis]).gain
    # four processes' spread, with the prior's 3 % at the weight of four; 1.895 is Student's 95 % quantile at 7
    spread = math.sqrt((4 * 0.03**2 + 4 * 0.05**2) / 7)
    half = math.hypot(0.3 * 1.895 * spread / math.sqrt(4), 0.7 * 1.895 * spread / math.sqrt(6))  # of the step
    best, worst = 0.7 - half, 0.7 + half
    assert (gain.low, gain.high) == pytest.approx((1 / worst - 1, 1 / best - 1), rel=0.01)


def test_a_step_is_divided_as_all_trials_together_show(analysis: Analysis, hand_made: Any, tmp_path: Path) -> None:
    changes = {"precision": "bf16-mixed"}
    waiting = analysed(hand_made(tmp_path / "waiting").record().rank([{**STEP, "input_wait": 1.1}] * 60))
    gain = with_rehearsal(finding(changes), [rehearsed(changes, 0.5)], [analysis, waiting]).gain
    assert gain.likely == pytest.approx(1 / (1 - (0.6 + 0.3) / 2 * 0.5) - 1)


def test_larger_micro_batches_take_per_micro_batch_costs_with_them(analysis: Analysis) -> None:
    changes = {"micro_batch": 8, "accumulate": 1}
    changed = with_rehearsal(finding(changes), [rehearsed(changes, 0.5, merged=4)], [analysis])
    left = 1 - 0.6 * 0.5 - 0.2 * 0.75 - 0.1 * 0.375  # model, the rest of the step, collating
    assert changed.gain.likely == pytest.approx(1 / left - 1)
    assert_bounded(changed)
    loaded = with_rehearsal(finding(changes), [rehearsed(changes, 0.5, merged=4, is_loaded=True)], [analysis])
    assert loaded.gain.likely == pytest.approx(1 / (1 - 0.7 * 0.5 - 0.2 * 0.75) - 1)
    assert loaded.gain.high - loaded.gain.low < changed.gain.high - changed.gain.low, "collating is no guess then"


def test_loading_was_timed_with_the_model(analysis: Analysis) -> None:
    changes = {"num_workers": 2}
    changed = with_rehearsal(finding(changes, 0.25), [rehearsed(changes, 0.9, is_loaded=True)], [analysis])
    assert changed.gain.likely == pytest.approx(1 / (1 - 0.7 * 0.1) - 1)
    assert_bounded(changed)


def test_settings_that_callbacks_feel_too(analysis: Analysis) -> None:
    changes = {"detect_anomaly": False}
    changed = with_rehearsal(finding(changes), [rehearsed(changes, 0.5)], [analysis])
    assert changed.gain.likely == pytest.approx(1 / (1 - 0.8 * 0.5) - 1)
    assert changed.gain.low < 1 / (1 - 0.6 * 0.5) - 1, "or they don't"


def test_a_change_that_slows_promises_a_loss(analysis: Analysis) -> None:
    changes = {"threads": 1}
    gain = with_rehearsal(finding(changes), [rehearsed(changes, 1.5)], [analysis]).gain
    assert gain.high < 0
    assert gain.low < gain.likely < gain.high


def test_what_was_not_rehearsed_stays_as_it_was(analysis: Analysis, hand_made: Any, tmp_path: Path) -> None:
    mine, other = {"threads": 1}, {"threads": 2}
    assert with_rehearsal(finding(mine), [rehearsed(other, 0.5)], [analysis]) == finding(mine)
    refused = Rehearsed(changes=mine, reason="the training has more than one process")
    assert with_rehearsal(finding(mine), [refused], [analysis]) == finding(mine)
    undivided = analysed(hand_made(tmp_path / "bare").record().rank([{"other": 1.0, "tokens": 40.0}] * 60))
    assert with_rehearsal(finding(mine), [rehearsed(mine, 0.5)], [undivided]) == finding(mine)


def test_what_was_rehearsed_survives_its_file(tmp_path: Path) -> None:
    found = [rehearsed({"threads": 1}, 0.5), Rehearsed(changes={"compile": True}, reason="not alone")]
    write_rehearsed(str(tmp_path), found)
    assert read_rehearsed(tmp_path) == found
    assert read_rehearsed(tmp_path / "missing") == []
    (tmp_path / "rehearsed.json").write_text("[{")
    assert read_rehearsed(tmp_path) == []
