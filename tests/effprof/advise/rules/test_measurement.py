"""Rules on the measurement: each with a run that provokes it, and a control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.advised_runs import CPU, assert_bounded, found, host_load


@pytest.fixture
def make(tmp_path: Path, hand_made: Any) -> Any:
    def run(name: str, steps: int = 60, hardware: Any = None, **rank: Any) -> Any:
        made = hand_made(tmp_path / name, name).record(**({"hardware": hardware} if hardware else {}))
        return made.rank([made.step()] * steps, **rank)

    return run


def test_above_the_peak(make: Any) -> None:
    low = {"peak": {"flops_per_s": 1e8, "dtype": "bf16", "source": "datasheet", "kind": "datasheet"}}
    finding = found(make("a", hardware=low), "meas-above-peak")
    assert finding is not None
    assert finding.gain.bound == 0
    assert found(make("b"), "meas-above-peak") is None


def test_few_steps(make: Any) -> None:
    assert found(make("a", steps=3), "meas-few-steps") is not None
    assert found(make("b"), "meas-few-steps") is None


def test_no_telemetry(make: Any) -> None:
    assert found(make("a"), "meas-telemetry") is not None
    assert found(host_load(make("b"), 50), "meas-telemetry") is None
    assert found(make("cpu", device=CPU), "meas-telemetry") is None


def test_own_overhead(tmp_path: Path, hand_made: Any) -> None:
    def recorded(name: str, overhead_s: float, *, is_profiled: bool, step_s: float = 12.0) -> Any:
        run = hand_made(tmp_path / name, name).record()
        more = {"profiled": 1} if is_profiled else {}
        steps = [run.step(step_s, **(more if 50 <= step < 53 else {})) for step in range(60)]
        return run.rank(steps, tail=[("effprof", overhead_s)])

    finding = found(recorded("a", 10.0, is_profiled=True), "meas-overhead")
    assert finding is not None
    assert_bounded(finding)
    assert found(recorded("quick", 2.0, is_profiled=True), "meas-overhead") is None, "a second or two, once"
    assert found(recorded("short", 10.0, is_profiled=True, step_s=1.0), "meas-overhead") is None, "a share of a minute"
    assert found(recorded("none", 10.0, is_profiled=False), "meas-overhead") is None, "there is no window to leave out"
