"""Warm-up is a leading prefix, as short as it can be, and slow steps inside the run are never dropped."""

from __future__ import annotations

import numpy as np
import pytest

from effprof.metrics.steady import has_settled, steady_start


def noisy(seconds: float, steps: int, share: float = 0.02, seed: int = 0) -> np.ndarray:
    return seconds * (1 + share * np.random.default_rng(seed).standard_normal(steps))


def test_a_flat_run_loses_only_its_first_step() -> None:
    index, rule = steady_start(noisy(0.1, 200))
    assert index == 1
    assert rule.startswith("first step of 200 dropped")


@pytest.mark.parametrize("slow", [2, 3, 7, 20, 60])
def test_a_slow_beginning_is_dropped_and_nothing_else(slow: int) -> None:
    index, rule = steady_start(np.concatenate([noisy(0.5, slow), noisy(0.1, 200 - slow)]))
    assert index == slow
    assert f"first {slow} of 200" in rule or f"first {slow} steps of 200" in rule


def test_a_second_compilation_is_warm_up_even_with_good_steps_before_it() -> None:
    times = noisy(0.1, 200)
    times[0] = times[3] = 20.0
    assert steady_start(times)[0] == 4


@pytest.mark.parametrize("at", [10, 50, 99, 150, 199])
def test_a_slow_step_inside_stays(at: int) -> None:
    times = noisy(0.1, 200)
    times[at] = 3.0
    assert steady_start(times)[0] == 1


def test_periodic_slow_steps_stay() -> None:
    times = noisy(0.1, 400)
    times[::10] = 0.4
    assert steady_start(times)[0] == 1


def test_a_run_that_becomes_slower_keeps_its_fast_beginning() -> None:
    # throttling at 60 %: dropping the fast part would hide what the chip can do, dropping the slow part what it did
    index, _ = steady_start(np.concatenate([noisy(0.1, 120), noisy(0.2, 80)]))
    assert index == 1


def test_steps_that_only_filled_the_launch_queue_are_dropped() -> None:
    times = noisy(0.8, 100)
    times[1:4] = 0.02
    assert steady_start(times)[0] == 4


def test_never_more_than_half() -> None:
    times = np.concatenate([noisy(0.5, 60), noisy(0.1, 40)])
    index, rule = steady_start(times)
    assert index == 50
    assert "half" in rule
    assert not has_settled(times, index)
    assert has_settled(noisy(0.1, 100), 1)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 7])
def test_short_runs_say_that_no_warm_up_was_sought(steps: int) -> None:
    index, rule = steady_start(np.full(steps, 0.1))
    assert index == min(1, steps)
    assert rule == "no steps" if steps == 0 else "fewer than 8" in rule


@pytest.mark.parametrize("steps", range(8, 40))
def test_any_length_gives_a_prefix_of_at_most_half(steps: int) -> None:
    for seed in range(5):
        index, _ = steady_start(np.random.default_rng(seed).lognormal(size=steps))
        assert 1 <= index <= steps // 2
