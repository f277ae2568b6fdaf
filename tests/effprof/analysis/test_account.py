"""Every second of wall clock has exactly one line, whatever the ranks, attempts and clocks did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effprof.analysis.account import RunAccount, account
from effprof.analysis.analyze import analyze, examine
from effprof.analysis.model import ACCOUNT_LINES, Account
from effprof.analysis.steps import job_steps
from effprof.runlog.reader import open_run
from effprof.runlog.schema import BEGAN, Event, Span


def accounted(path: Path) -> RunAccount:
    run = open_run(str(path))
    return account(run, job_steps(run)[0])


def assert_complete(found: Account) -> None:
    assert sum(found.lines.values()) == pytest.approx(found.wall_s, abs=1e-6)
    assert min(found.lines.values()) >= 0
    assert set(found.lines) <= set(ACCOUNT_LINES)


def test_known_run(simple_run: Any) -> None:
    found = accounted(simple_run.path).job
    assert_complete(found)
    assert found.basis == "host"
    # 2 s start-up, 1 s + 99 × 0.1 s of steps, 3 s checkpoint
    assert found.wall_s == pytest.approx(15.9, abs=1e-6)
    expected = {
        "startup": 2.0,
        "step.input_wait": 1.09,
        "step.forward": 3.27,
        "step.backward": 5.45,
        "step.optimizer": 1.09,
        "checkpoint": 3.0,
    }
    for name, seconds in found.lines.items():
        assert seconds == pytest.approx(expected.get(name, 0.0), abs=1e-6), name


def test_lines_that_the_host_cannot_measure_are_absent_and_the_others_are_zero(simple_run: Any) -> None:
    lines = accounted(simple_run.path).job.lines
    assert set(ACCOUNT_LINES) - set(lines) == {"step.exposed_communication", "step.pipeline_bubble", "step.host_gap"}
    assert lines["compile"] == 0.0


def test_time_outside_the_phases_is_unattributed(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    gap = Span(name="evaluation", start_ns=5_010_000_000_000, end_ns=5_012_000_000_000)
    run.rank([run.step(0.5)] * 4, lines=[gap])  # steps end at 4 s, the evaluation is from 10 s to 12 s
    found = accounted(run.path).job
    assert_complete(found)
    assert found.wall_s == pytest.approx(12.0, abs=1e-6)
    assert found.lines["evaluation"] == pytest.approx(2.0, abs=1e-6)
    assert found.lines["unattributed"] == pytest.approx(6.0, abs=1e-6)


def test_phases_inside_steps_have_their_own_lines(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    extra = {
        "evaluation": 0.7,
        "checkpoint": 0.2,
        "logging": 0.05,
        "effprof": 0.01,
        "compile": 0.3,
        "unattributed": 0.1,
    }
    run.rank([run.step(0.1, **extra)] * 10)
    lines = accounted(run.path).job.lines
    for name, seconds in extra.items():
        assert lines[name] == pytest.approx(10 * seconds, abs=1e-6), name


def test_a_span_that_is_already_inside_a_step_counts_once(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    inside = Span(name="evaluation", start_ns=5_002_100_000_000, end_ns=5_002_400_000_000, inside_step=True)
    run.rank([run.step(0.1, evaluation=0.3)] * 10, lines=[inside])
    found = accounted(run.path).job
    assert_complete(found)
    assert found.lines["evaluation"] == pytest.approx(3.0, abs=1e-6)


def test_overlapping_records_cannot_make_the_sum_wrong(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    twice = Span(name="checkpoint", start_ns=5_002_000_000_000, end_ns=5_002_600_000_000)
    run.rank([run.step(0.1)] * 10, lines=[twice])
    found = accounted(run.path)
    assert_complete(found.job)
    assert "overlapping_records" in [warning.code for warning in found.warnings]


def test_the_gap_between_attempts_is_restart_and_repeated_steps_are_lost(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 30, end=None)  # 0 … 5 s, steps 1 … 30, killed
    run.rank([run.step(0.1)] * 50, attempt=1, start_s=9.0, first_step=21)  # from a checkpoint at step 20
    found = accounted(run.path).job
    assert_complete(found)
    assert found.wall_s == pytest.approx(9.0 + 2.0 + 5.0, abs=1e-6)
    assert found.lines["restart"] == pytest.approx(4.0, abs=1e-6)
    assert found.lines["lost_steps"] == pytest.approx(1.0, abs=1e-6)
    assert found.lines["startup"] == pytest.approx(4.0, abs=1e-6)
    assert found.lines["step.forward"] == pytest.approx(0.03 * 70, abs=1e-6)
    steps = analyze(open_run(str(run.path))).efficiency.steps
    assert (steps.total, steps.repeated) == (80, 10)


def test_steps_that_a_resume_discarded_are_lost_though_nobody_made_them_again(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 30, end=None)  # steps 1 … 30
    run.rank([run.step(0.1)] * 5, attempt=1, start_s=9.0, first_step=21, end=None)  # from 20 on, dead after step 25
    examined = examine(open_run(str(run.path)))
    found = examined.analysis.account
    assert_complete(found)
    # 21 … 25 were made twice, 26 … 30 once and for nothing: 35 steps made, 25 kept
    assert found.lines["lost_steps"] == pytest.approx(1.0, abs=1e-6)
    assert found.lines["step.forward"] == pytest.approx(0.03 * 25, abs=1e-6)
    assert examined.steps.is_lost.sum() == 10
    assert examined.analysis.efficiency.steps.repeated == 5
    run.rank([run.step(0.1)] * 10, attempt=2, start_s=15.0, first_step=24)  # from 23 on, up to 33: 26 … 30 made again
    again = examine(open_run(str(run.path)))
    assert again.steps.is_lost.sum() == 5 + 7
    assert 45 - again.steps.is_lost.sum() == 33


def test_a_restart_that_made_no_step_is_said_to_hide_what_it_discarded(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 30, end=None)
    run.rank([], attempt=1, start_s=9.0, end=None)
    analysis = analyze(open_run(str(run.path)))
    assert "resume_unknown" in [warning.code for warning in analysis.warnings]
    assert analysis.account.lines["step.forward"] == pytest.approx(0.03 * 30, abs=1e-6)
    run.rank([run.step(0.1)] * 5, attempt=2, start_s=19.0, first_step=31)
    assert "resume_unknown" not in [warning.code for warning in analyze(open_run(str(run.path))).warnings]


def test_a_restart_that_made_no_step_but_said_where_it_went_on_has_discarded_what_lies_behind(
    tmp_path: Path, hand_made: Any
) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 30, end=None)
    began = Event(name=BEGAN, monotonic_ns=run.event("", "").monotonic_ns, data={"step": 20})
    run.rank([], attempt=1, start_s=9.0, end=None, lines=[began])
    analysis = analyze(open_run(str(run.path)))
    assert not {"resume_unknown", BEGAN} & {warning.code for warning in analysis.warnings}  # it is no warning
    assert analysis.account.lines["lost_steps"] == pytest.approx(1.0, abs=1e-6)
    assert analysis.account.lines["step.forward"] == pytest.approx(0.03 * 20, abs=1e-6)


def test_a_resume_after_a_clean_stop_loses_nothing(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 30)
    run.rank([run.step(0.1)] * 10, attempt=1, start_s=6.0, first_step=31)
    lines = accounted(run.path).job.lines
    assert lines["lost_steps"] == 0.0
    assert lines["restart"] == pytest.approx(1.0, abs=1e-6)


def test_attempts_that_overlap_share_no_second(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 30)  # until 5 s
    run.rank([run.step(0.1)] * 30, attempt=1, start_s=4.0, first_step=31)  # its process began before
    found = accounted(run.path).job
    assert_complete(found)
    assert found.wall_s == pytest.approx(9.0, abs=1e-6)
    assert found.lines["restart"] == 0.0


def test_the_job_is_the_mean_of_its_ranks_and_each_rank_is_complete(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 100, rank=0, world_size=2, tail=[("checkpoint", 2.0)])
    run.rank([run.step(0.12)] * 100, rank=1, world_size=2, start_s=0.5)  # its process began later
    found = accounted(run.path)
    assert_complete(found.job)
    assert found.job.wall_s == pytest.approx(14.5, abs=1e-6)
    for own in found.ranks.values():
        assert_complete(own)
        assert own.wall_s == pytest.approx(14.5, abs=1e-6)
    assert found.job.lines["checkpoint"] == pytest.approx(1.0, abs=1e-6)
    assert found.ranks[1].lines["startup"] == pytest.approx(2.5, abs=1e-6)
    assert found.ranks[0].lines["unattributed"] == pytest.approx(0.5, abs=1e-6)
    for name, seconds in found.job.lines.items():
        mean = np.mean([own.lines[name] for own in found.ranks.values()])
        assert seconds == pytest.approx(mean, abs=1e-6), name


def test_hosts_whose_clocks_differ_still_add_up(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 20, rank=0, world_size=2)
    run.rank([run.step(0.1)] * 20, rank=1, world_size=2, skew_s=-3.0, host="node-b")
    found = accounted(run.path)
    assert_complete(found.job)
    for own in found.ranks.values():
        assert_complete(own)


def test_a_rank_that_left_has_an_account_of_the_attempts_it_was_in(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    for rank in (0, 1):
        run.rank([run.step(0.1)] * 30, rank=rank, world_size=2)
    run.rank([run.step(0.1)] * 30, attempt=1, start_s=8.0, first_step=31)
    found = accounted(run.path)
    assert found.job.wall_s == pytest.approx(13.0, abs=1e-6)
    assert found.ranks[1].wall_s == pytest.approx(5.0, abs=1e-6)
    for own in [found.job, *found.ranks.values()]:
        assert_complete(own)
    # 2 devices for 5 s, then 1 for the gap and the second attempt
    assert found.wall_device_s == pytest.approx(2 * 5 + 8, abs=1e-6)


def device_step(run: Any, seconds: float, **device: float | None) -> dict[str, float | None]:
    step: dict[str, float | None] = run.step(seconds)
    return {**step, "host_to_device": 0.02 * seconds, **{f"device_{name}": value for name, value in device.items()}}


def test_device_events_split_steps_by_what_the_device_did(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    # per step 0.102 s: 0.02 + 0.05 + 0.005 s of compute leave 0.027 s in which the device waited: for the copy at most
    # 0.002 s, for input at most the 0.01 s that the host waited, the rest is the host's gap
    steps = [device_step(run, 0.1, forward=0.02, backward=0.05, optimizer=0.005, gap=0.027) for _ in range(101)]
    run.rank(steps)
    found = accounted(run.path).job
    assert_complete(found)
    assert found.basis == "device"
    expected = {
        "step.forward": 0.02 * 100 + 0.03,  # the first step, warm-up, is split by the host's clock
        "step.backward": 0.05 * 100 + 0.05,
        "step.optimizer": 0.005 * 100 + 0.01,
        "step.host_to_device": 0.002 * 101,
        "step.input_wait": 0.01 * 101,
        "step.host_gap": 0.015 * 100,
    }
    for name, seconds in expected.items():
        assert found.lines[name] == pytest.approx(seconds, abs=1e-5), name


def test_every_tenth_step_sampled_stands_for_all(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    sampled = device_step(run, 0.1, forward=0.03, backward=0.06, optimizer=0.005, gap=0.007)
    plain = device_step(run, 0.1, forward=None)
    stalled = {**plain, "input_wait": 2.01}  # the data came late once, between two sampled steps
    steps = [sampled if n % 10 == 0 else plain for n in range(1, 201)]
    steps[54] = stalled
    run.rank(steps)
    found = accounted(run.path).job
    assert_complete(found)
    assert found.lines["step.forward"] == pytest.approx(0.03 * 200, rel=0.01)
    # the stall is input wait and not compute, although no event saw it
    assert found.lines["step.input_wait"] == pytest.approx(2.0 + 0.005 * 200, rel=0.02)


def test_more_device_time_than_host_time_is_scaled_and_said(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([device_step(run, 0.1, forward=0.1, backward=0.1, optimizer=0.0, gap=0.0) for _ in range(50)])
    found = accounted(run.path)
    assert_complete(found.job)
    assert "device_time_exceeds_host" in [warning.code for warning in found.warnings]


def test_a_run_without_steps_is_start_up(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record().rank([], tail=[("evaluation", 1.0)], end=None)
    found = accounted(run.path).job
    assert_complete(found)
    assert found.lines["startup"] == pytest.approx(2.0, abs=1e-6)
    assert found.lines["evaluation"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(25))
def test_whatever_was_recorded_the_lines_sum_to_the_wall_clock(tmp_path: Path, hand_made: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    run = hand_made(tmp_path / "r").record()
    world_size = int(rng.integers(1, 4))
    start_s = 0.0
    for attempt in range(int(rng.integers(1, 4))):
        for rank in range(world_size):
            names = ("input_wait", "forward", "backward", "optimizer", "other", "evaluation", "logging", "unattributed")
            steps = [
                {name: float(rng.exponential(0.1)) for name in names if rng.random() < 0.8}
                for _ in range(int(rng.integers(0, 60)))
            ]
            if seed % 3 == 0:
                for step in steps:
                    step["device_forward"], step["device_gap"] = float(rng.exponential(0.1)), 0.01
            begins, lasts = rng.uniform(0, 4e9, 3), rng.exponential(1e9, 3)
            stray = [
                Span(name=str(name), start_ns=5_000_000_000_000 + int(at), end_ns=5_000_000_000_000 + int(at + long))
                for name, at, long in zip(rng.choice(["evaluation", "forward", "odd"], 3), begins, lasts, strict=True)
            ]
            run.rank(
                steps,
                rank=rank,
                world_size=world_size,
                attempt=attempt,
                start_s=start_s + float(rng.uniform(0, 2)),
                startup_s=float(rng.uniform(0, 3)),
                first_step=int(rng.integers(1, 30)),
                skew_s=float(rng.normal(0, 5)),
                lines=stray,
                end=None if rng.random() < 0.3 else "completed",
            )
        start_s += float(rng.uniform(-5, 30)) if start_s else float(rng.uniform(0, 30))
        start_s = max(start_s, 0.0)
    found = accounted(run.path)
    for own in [found.job, *found.ranks.values()]:
        assert_complete(own)


def test_months_of_uptime_keep_the_sum(tmp_path: Path, hand_made: Any) -> None:
    # 100,000 steps of awkward length: rounding must not pile up
    run = hand_made(tmp_path / "r").record()
    lengths = np.random.default_rng(0).uniform(0.0987654321, 0.1234567891, 20_000)
    run.rank([run.step(float(seconds)) for seconds in lengths])
    found = accounted(run.path).job
    assert_complete(found)
    assert found.lines["unattributed"] < 1e-5
