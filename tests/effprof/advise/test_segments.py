"""Segments with known rates and losses: gains, intervals and damage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from effprof.advise.segments import SegmentResult, compare_losses, gain_interval, speed_gain
from effprof.advise.verification import merge_changes, verify


def segments(
    rate: float, seed: int, *, count: int = 4, between: float = 0.01, loss: float = 2.0, **more: Any
) -> list[SegmentResult]:
    """Segments whose rates differ by `between` from each other, and steps by 5 % inside each."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        own = rate * (1 + between * draw.standard_normal())
        seconds = 100 / own * (1 + 0.05 * draw.standard_normal(60))
        losses = loss + 0.02 * draw.standard_normal(64)
        made.append(SegmentResult(np.full(60, 100.0), seconds, losses, wall_s=0.0, **more))
    return made


def player(queue: list[SegmentResult]) -> Any:
    return iter(queue * 10).__next__


def verified(before: list[SegmentResult], after: list[SegmentResult], **more: Any) -> Any:
    return verify(player(before), player(after), **{"budget_s": 0.5, **more})


def test_a_clear_gain_is_confirmed_and_its_interval_holds_it() -> None:
    result = verified(segments(1000, 1), segments(1200, 2))
    assert result.verdict == "confirmed"
    assert result.is_good
    assert result.obtained.value == pytest.approx(0.2, abs=0.03)
    assert result.obtained.ci95[0] < 0.2 < result.obtained.ci95[1]
    assert {each.side for each in result.segments[:2]} == {"before", "after"}


def test_a_loss_of_speed_is_refuted() -> None:
    result = verified(segments(1000, 1), segments(800, 2))
    assert result.verdict == "refuted"
    assert result.obtained.value < -0.15


def test_equal_sides_show_no_difference() -> None:
    result = verified(segments(1000, 3, count=40, between=0.002), segments(1000, 4, count=40, between=0.002))
    assert result.verdict == "no_difference"
    assert not result.is_good


def test_segments_that_differ_more_than_the_sides_decide_nothing() -> None:
    result = verified(segments(1000, 5, between=0.2), segments(1030, 6, between=0.2), budget_s=0.0)
    assert result.verdict == "failed"
    noisy = gain_interval(segments(1000, 5, between=0.2), segments(1030, 6, between=0.2))
    assert noisy is not None
    assert noisy[0] < 0 < noisy[1]


def test_intervals_hold_the_true_gain_as_often_as_they_say() -> None:
    trials = 100
    held = 0
    for trial in range(trials):
        before = segments(1000, 2 * trial, count=3, between=0.05)
        after = segments(1100, 2 * trial + 1, count=3, between=0.05)
        interval = gain_interval(before, after)
        assert interval is not None
        held += interval[0] < 0.1 < interval[1]
    assert held >= 0.88 * trials  # 95 % less three standard errors of 100 trials


def test_what_slows_both_segments_of_a_block_does_not_widen_the_interval() -> None:
    def at(rate: float) -> SegmentResult:
        return SegmentResult(np.full(40, 100.0), np.full(40, 100 / rate))

    drift = [1.0, 0.5, 2.0, 0.7]
    interval = gain_interval([at(1000 * each) for each in drift], [at(1200 * each) for each in drift])
    assert interval == pytest.approx((0.2, 0.2))


def test_a_segment_that_runs_out_of_memory_ends_the_test() -> None:
    empty = np.zeros(0)
    broken = SegmentResult(empty, empty, outcome="out_of_memory", reason="CUDA out of memory")
    result = verify(player(segments(1000, 1)), lambda: broken)
    assert result.verdict == "failed"
    assert "with the change: out of memory" in result.reason


def test_a_damaged_loss_is_told_and_a_confirmed_gain_is_then_not_good() -> None:
    result = verified(segments(1000, 1), segments(1300, 2, loss=2.6))
    assert result.verdict == "confirmed"
    assert result.loss.is_damaged
    assert not result.is_good
    assert result.loss.difference == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("loss", [2.0, 1.5])
def test_an_equal_or_better_loss_is_no_damage(loss: float) -> None:
    compared = compare_losses(segments(1000, 1), segments(1000, 2, loss=loss))
    assert compared is not None
    assert not compared.is_damaged


def test_a_loss_that_is_no_number_is_damage() -> None:
    compared = compare_losses(segments(1000, 1), segments(1000, 2, loss=math.nan))
    assert compared is not None
    assert compared.is_damaged


def test_losses_are_held_against_each_other_over_the_steps_that_all_made() -> None:
    def falling(steps: int) -> SegmentResult:
        return SegmentResult(np.ones(steps), np.ones(steps), np.linspace(4, 4 - steps / 50, steps))

    compared = compare_losses([falling(40), falling(60)], [falling(120), falling(100)])
    assert compared is not None
    assert compared.steps == 40
    assert compared.difference == pytest.approx(0, abs=0.02)


def test_without_losses_nothing_is_said_of_them() -> None:
    bare = [SegmentResult(np.ones(9), np.ones(9))]
    assert compare_losses(bare, bare) is None


def test_one_segment_carries_a_gain_and_no_interval() -> None:
    before, after = segments(1000, 1, count=1), segments(1200, 2, count=1)
    assert speed_gain(before, after) == pytest.approx(0.2, abs=0.05)
    assert gain_interval(before, after) is None


def test_bursts_of_a_loader_count_as_what_they_are() -> None:
    """Workers deliver two batches at once: the median step waits for nothing, the rate must not."""
    bursts = SegmentResult(np.full(30, 8.0), np.tile([0.01, 0.01, 0.28], 10))
    assert bursts.rate == pytest.approx(80.0)


def test_an_interrupted_test_gives_what_it_has() -> None:
    queue = iter(segments(1000, 1))

    def interrupted() -> SegmentResult:
        segment = next(queue, None)
        if segment is None:
            raise KeyboardInterrupt
        return segment

    result = verify(interrupted, player(segments(1003, 2, between=0.2)))
    assert result.is_interrupted
    assert result.before == pytest.approx(1000, rel=0.05)


def test_later_changes_win_and_lists_and_environments_join() -> None:
    base = {"precision": "32-true", "disable_callbacks": ["A"], "environment": {"X": "1"}}
    later = {"precision": "bf16-mixed", "disable_callbacks": ["A", "B"], "environment": {"Y": "2"}}
    assert merge_changes(base, later) == {
        "precision": "bf16-mixed",
        "disable_callbacks": ["A", "B"],
        "environment": {"X": "1", "Y": "2"},
    }


def in_turns(rate: float, slow: np.ndarray, seed: int) -> SegmentResult:
    """Eight steps of a turn each; the machine slows all steps of a turn by one factor, and steps differ by 2 %."""
    turns = np.repeat(np.arange(len(slow)), 8)
    noise = 1 + 0.02 * np.random.default_rng(seed).standard_normal(len(turns))
    return SegmentResult(np.full(len(turns), 100.0), 100 / rate * slow[turns] * noise, turns=turns)


def test_what_slows_both_sides_turns_leaves_a_narrow_interval() -> None:
    draw = np.random.default_rng(7)
    slows = [1 + 0.8 * draw.random(12) for _ in range(4)]
    before = [in_turns(1000, slow, 10 + place) for place, slow in enumerate(slows)]
    after = [in_turns(1200, slow, 20 + place) for place, slow in enumerate(slows)]
    gain, interval = speed_gain(before, after), gain_interval(before, after)
    assert gain == pytest.approx(0.2, abs=0.01)
    assert interval is not None
    assert interval[0] < 0.2 < interval[1]
    alone = [[replace(each, turns=np.zeros(0, np.int64)) for each in side] for side in (before, after)]
    wide = gain_interval(*alone)
    assert wide is not None
    assert interval[1] - interval[0] < 0.5 * (wide[1] - wide[0])


def test_only_turns_that_both_sides_made_are_compared() -> None:
    slow = np.concatenate([np.full(8, 1.0), np.full(8, 3.0)])
    before, whole = in_turns(1000, slow, 1), in_turns(1200, slow, 2)
    short = replace(whole, counts=whole.counts[:64], seconds=whole.seconds[:64], turns=whole.turns[:64])
    assert speed_gain([before], [short]) == pytest.approx(0.2, abs=0.01)
