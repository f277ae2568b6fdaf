"""One division, and when it refuses to be called a number."""

from __future__ import annotations

import math

import pytest

from effprof.metrics.mfu import is_above_peak, mfu, raw_share


def test_mfu_of_known_inputs() -> None:
    # 8 H100s at 989.4 TFLOP/s, 3.04e15 FLOPs in 1 s
    assert mfu(3.04e15, 1.0, 989.4e12, 8) == pytest.approx(0.38407, rel=1e-4)


def test_more_than_the_peak_is_refused_not_shown() -> None:
    assert mfu(2.0, 1.0, 1.0, 1) is None
    assert is_above_peak(2.0, 1.0, 1.0, 1)
    assert raw_share(2.0, 1.0, 1.0, 1) == 2.0
    assert mfu(1.0, 1.0, 1.0, 1) == 1.0
    assert not is_above_peak(1.0, 1.0, 1.0, 1)


@pytest.mark.parametrize("inputs", [(None, 1, 1, 1), (1, None, 1, 1), (1, 1, None, 1), (1, 1, 1, None)])
def test_a_missing_input_gives_no_value(inputs: tuple[float | None, ...]) -> None:
    assert mfu(*inputs) is None
    assert not is_above_peak(*inputs)


@pytest.mark.parametrize(
    "inputs", [(1, 0, 1, 1), (1, 1, 0, 1), (1, -1, 1, 1), (-1, 1, 1, 1), (math.nan, 1, 1, 1), (1, math.inf, 1, 1)]
)
def test_impossible_inputs_give_no_value(inputs: tuple[float, ...]) -> None:
    assert mfu(*inputs) is None


def test_no_work_is_zero_not_missing() -> None:
    assert mfu(0.0, 1.0, 1.0, 1) == 0.0
