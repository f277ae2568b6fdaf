"""Rules on reinforcement learning and fine-tuning: each with a run that provokes it, and a control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.advised_runs import assert_bounded, found

TUNING = {"frozen_share": 0.95, "train_batches": 20, "accumulate": 1}


@pytest.fixture
def make(tmp_path: Path, hand_made: Any) -> Any:
    def run(name: str, step: dict[str, float], **config: Any) -> Any:
        return hand_made(tmp_path / name, name).record(config=config).rank([step] * 60)

    return run


def test_generation_bound(make: Any) -> None:
    finding = found(make("a", {"generation": 0.8, "forward": 0.1, "backward": 0.1}), "rl-generation")
    assert finding is not None
    assert_bounded(finding)
    assert finding.gain.bound == pytest.approx(1 / 0.2 - 1)
    assert finding.gain.likely == pytest.approx(1 / 0.6 - 1), "twice as fast"
    assert found(make("b", {"generation": 0.2, "forward": 0.4, "backward": 0.4}), "rl-generation") is None
    assert found(make("c", {"forward": 0.4, "backward": 0.4}), "rl-generation") is None


def test_frozen_features(make: Any) -> None:
    step = {"forward": 0.8, "backward": 0.2}
    finding = found(make("a", step, **TUNING), "rl-frozen-features")
    assert finding is not None
    assert_bounded(finding)
    assert finding.gain.bound == pytest.approx(1 / (1 - 0.8 * 0.95) - 1)
    for name, changed in (
        ("adapter", {"adapter": "LORA"}),
        ("trained", {"frozen_share": 0.1}),
        ("one-epoch", {"train_batches": 600}),
    ):
        assert found(make(name, step, **{**TUNING, **changed}), "rl-frozen-features") is None
    backward = {"forward": 0.2, "backward": 0.8}
    assert found(make("backward", backward, **TUNING), "rl-frozen-features") is None
