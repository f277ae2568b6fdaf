"""Rules on other chips: each with a run that provokes it, and a control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effprof.advise.rule import Missing
from tests.support.advised_runs import assert_bounded, found

HPU = {"type": "hpu", "index": 0, "name": "HL-225"}
MPS = {"type": "mps", "index": 0, "name": "Apple M3"}
STEP = {"forward": 0.3, "backward": 0.7, "tokens": 40.0}


@pytest.fixture
def make(tmp_path: Path, hand_made: Any) -> Any:
    def run(name: str, device: Any, step: Any = STEP, config: Any = None, environment: Any = None) -> Any:
        software = {} if environment is None else {"environment": environment}
        made = hand_made(tmp_path / name, name).record(config=config or {}, software=software)
        return made.rank([step] * 60, **({"device": device} if device else {}))

    return run


def test_many_shapes(make: Any) -> None:
    compiling = {**STEP, "compile": 0.5}
    finding = found(make("a", HPU, compiling, {"input_shapes": 100}), "port-dynamic-shapes")
    assert finding is not None
    assert_bounded(finding)
    assert found(make("few", HPU, compiling, {"input_shapes": 4}), "port-dynamic-shapes") is None
    assert found(make("cached", HPU, STEP, {"input_shapes": 100}), "port-dynamic-shapes") is None
    assert found(make("cuda", None, compiling, {"input_shapes": 100}), "port-dynamic-shapes") is None


def test_foreign_settings(make: Any) -> None:
    nvidia = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "NCCL_ALGO": "Ring", "OMP_NUM_THREADS": "8"}
    finding = found(make("a", HPU, environment=nvidia), "port-foreign-settings")
    assert finding is not None
    assert finding.knobs["environment"] == "unset CUDA_DEVICE_MAX_CONNECTIONS NCCL_ALGO"
    assert found(make("own", None, environment=nvidia), "port-foreign-settings") is None
    assert found(make("clean", HPU, environment={"OMP_NUM_THREADS": "8"}), "port-foreign-settings") is None
    with pytest.raises(Missing, match="environment"):
        found(make("unknown", HPU), "port-foreign-settings")


def test_host_fallback(make: Any) -> None:
    copying = {**STEP, "host_to_device": 0.2}
    switch = {"PYTORCH_ENABLE_MPS_FALLBACK": "1"}
    finding = found(make("a", MPS, copying, environment=switch), "port-host-fallback")
    assert finding is not None
    assert_bounded(finding)
    assert found(make("off", MPS, copying, environment={}), "port-host-fallback") is None
    assert found(make("quick", MPS, STEP, environment=switch), "port-host-fallback") is None
    assert found(make("cuda", None, copying, environment=switch), "port-host-fallback") is None
