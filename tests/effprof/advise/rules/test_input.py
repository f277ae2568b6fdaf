"""Rules on input: each with a run that provokes it and one on which it stays silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effprof.advise.rule import Missing
from effprof.runlog.schema import Memory
from tests.support.advised_runs import CPU, assert_bounded, found, host_load

FEEDING = {"num_workers": 0, "host_cpus": 8, "pin_memory": True, "persistent_workers": False, "accumulate": 1}


@pytest.fixture
def make(tmp_path: Path, hand_made: Any) -> Any:
    def run(name: str = "run", steps: Any = None, device: Any = None, **config: Any) -> Any:
        made = hand_made(tmp_path / name, name).record(config={**FEEDING, **config})
        more = {"device": device} if device else {}
        return made.rank(steps or [made.step()] * 60, **more)

    return run


def waiting(share: float) -> dict[str, float]:
    """A step of a second that waits for a share of it."""
    return {"input_wait": share, "forward": (1 - share) / 3, "backward": 2 * (1 - share) / 3, "tokens": 40.0}


def test_too_few_workers(make: Any) -> None:
    finding = found(make(), "in-workers")
    assert finding is not None
    assert_bounded(finding)
    assert finding.gain.bound == pytest.approx(1 / 0.9 - 1)
    assert finding.changes == {"num_workers": 7, "persistent_workers": True}
    assert found(make("enough", num_workers=7), "in-workers") is None
    assert found(make("quick", [waiting(0.02)] * 60), "in-workers") is None


def test_one_worker_cannot_load_faster_than_the_step_allows(make: Any) -> None:
    # 70 % of the step is loading: one worker loads for 0.7 s beside 0.3 s of computing, so at most 30 % goes
    finding = found(make(steps=[waiting(0.7)] * 60, host_cpus=2), "in-workers")
    assert finding is not None
    assert finding.gain.high == pytest.approx(1 / 0.7 - 1)
    assert finding.gain.bound == pytest.approx(1 / 0.3 - 1)


def test_a_loader_that_sleeps_hides_wholly_and_needs_as_many_workers_as_the_wait_is_long(
    tmp_path: Path, hand_made: Any
) -> None:
    def finding(name: str, busy: float) -> Any:
        run = hand_made(tmp_path / name, name).record(config={**FEEDING, "host_cpus": 2})
        opened = run.memory().monotonic_ns - 1_000_000_000  # end of the start-up of two seconds
        lines = [
            Memory(monotonic_ns=opened + n * 10**9, step=n, training_thread_cpu_ns=round(n * busy * 10**9))
            for n in range(1, 60)
        ]
        return found(host_load(run.rank([waiting(0.5)] * 60, device=CPU, lines=lines), 50), "in-workers")

    asleep, working = finding("asleep", 0.5), finding("working", 1.0)
    assert asleep.changes["num_workers"] == 2, "0.5 s of loading a step in 0.5 s of computing, with time to spare"
    assert asleep.gain.high == pytest.approx(1.0)
    assert asleep.gain.low == pytest.approx(1 / (1 - 0.94 * 0.5) - 1)
    assert working.changes["num_workers"] == 1
    assert working.gain.low < 0.6


def test_on_a_cpu_only_idle_processors_help(make: Any) -> None:
    def gain(name: str, percent: float) -> float:
        finding = found(host_load(make(name, [waiting(0.4)] * 60, CPU, host_cpus=2), percent), "in-workers")
        return 0.0 if finding is None else finding.gain.high

    assert gain("idle", 40) == pytest.approx(1 / 0.6 - 1)
    assert gain("half", 80) == pytest.approx(1 / 0.8 - 1)
    assert gain("busy", 100) == 0, "workers would take the processors from the computation"
    without = found(make("unknown", [waiting(0.4)] * 60, CPU, host_cpus=2), "in-workers")
    assert without is not None
    assert without.gain.high == pytest.approx(1 / 0.8 - 1), "half of the waiting processors are free"


def test_what_was_not_recorded_is_missing(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "bare", "bare").record().rank([hand_made.step()] * 60)
    with pytest.raises(Missing, match="num_workers"):
        found(run, "in-workers")


def test_pageable_copies(make: Any) -> None:
    copying = [{**waiting(0.01), "host_to_device": 0.1}] * 60
    finding = found(make(steps=copying, pin_memory=False), "in-pinned")
    assert finding is not None
    assert_bounded(finding)
    assert finding.changes == {"pin_memory": True}
    assert found(make("pinned", copying), "in-pinned") is None
    assert found(make("cpu", copying, CPU, pin_memory=False), "in-pinned") is None


def test_workers_started_for_every_epoch(make: Any) -> None:
    slow_start = [waiting(0.5) if step and step % 10 == 0 else waiting(0.0) for step in range(60)]
    known = {"num_workers": 7, "train_batches": 10}
    finding = found(make(steps=slow_start, **known), "in-persistent-workers")
    assert finding is not None
    assert_bounded(finding)
    assert finding.gain.bound == pytest.approx(2.5 / 57.5, rel=0.1), "five epochs open with half a second of waiting"
    assert found(make("kept", slow_start, **{**known, "persistent_workers": True}), "in-persistent-workers") is None
    elsewhere = [waiting(0.5) if step % 10 == 5 else waiting(0.0) for step in range(60)]
    assert found(make("elsewhere", elsewhere, **known), "in-persistent-workers") is None


def test_short_queue(make: Any) -> None:
    bursts = [waiting(0.9) if step % 10 == 5 else waiting(0.0) for step in range(60)]
    known = {"num_workers": 7, "train_batches": 1000, "prefetch_factor": 2}
    finding = found(make(steps=bursts, **known), "in-prefetch")
    assert finding is not None
    assert_bounded(finding)
    assert finding.changes == {"prefetch_factor": 8}
    assert found(make("steady", [waiting(0.1)] * 60, **known), "in-prefetch") is None
    assert found(make("long", bursts, **{**known, "prefetch_factor": 8}), "in-prefetch") is None


@pytest.mark.parametrize(
    ("rule", "load", "other"), [("in-preprocessing", 95, 30), ("in-storage", 20, 90)], ids=["processors", "storage"]
)
def test_waits_although_workers_run(rule: str, load: float, other: float, make: Any) -> None:
    steps = [waiting(0.3)] * 60
    finding = found(host_load(make(steps=steps, num_workers=7), load), rule)
    assert finding is not None
    assert_bounded(finding)
    assert found(host_load(make("other", steps, num_workers=7), other), rule) is None
    assert found(host_load(make("few", steps, num_workers=1), load), rule) is None, "more workers come first"
    with pytest.raises(Missing, match="cpu_percent"):
        found(make("dark", steps, num_workers=7), rule)
