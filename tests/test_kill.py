"""A training killed at a random moment leaves a readable record that lacks at most its last second."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TIMES = 3  # benchmarks/kill.py does it 20 times


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/kill.py as a module; it finds its neighbours as it does when run as a script."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("kill_benchmark", BENCHMARKS / "kill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(TIMES))
def test_a_killed_training_loses_at_most_a_second(kill: ModuleType, tmp_path: Path, seed: int) -> None:
    left = kill.kill_once(tmp_path, after_s=random.Random(seed).uniform(0.5, 2.5))
    assert left.steps_done > 10
    assert left.lost_s <= 1.0, left
    assert not left.has_end
    assert left.orphans == 0, "the telemetry process outlived the training"
