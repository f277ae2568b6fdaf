"""Two trials that take turns: never both at once, in comparable turns, and alone where turns can't be."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from effprof.advise.segments import speed_gain
from effprof.advise.turns import ALONE, DONE, FREE, FROM_TRIAL, GO, READY, TO_TRIAL, CommandBlocks, run_in_turns
from effprof.analysis.analyze import examine
from effprof.callbacks import lightning_turns
from effprof.callbacks.lightning_turns import Turns
from effprof.runlog.reader import open_run

SUPPORT = Path(__file__).resolve().parents[1] / "support"
RECORDED, SLEEPING = SUPPORT / "recorded_training.py", SUPPORT / "sleeping_training.py"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [sys.executable, str(SLEEPING)]


def stretches(run: str) -> tuple[np.ndarray, np.ndarray]:
    """When each step of a run but the first began and ended, in seconds of the clock that both sides share."""
    examined = examine(open_run(run))
    ends = open_run(run).attempts[-1].ranks[0]
    wall = ends.columns["end_ns"] / 1e9
    return (wall - examined.steps.seconds)[1:], wall[1:]


def test_two_trials_never_step_at_once(command: list[str], tmp_path: Path) -> None:
    found = run_in_turns(
        command, ({}, tmp_path / "a"), ({"gc_every_n_steps": 50}, tmp_path / "b"), seconds=3, timeout_s=120
    )
    own, changed = found
    assert [each.outcome for each in found] == ["ok", "ok"]
    assert changed.applied == {"gc_every_n_steps": 50}
    assert own.wall_s == changed.wall_s > 3
    assert len(np.intersect1d(own.turns, changed.turns)) >= 2
    assert abs(speed_gain([own], [changed])) < 0.2  # both sleep the same
    began, ended = stretches(own.run)
    other_began, other_ended = stretches(changed.run)
    overlaps = (began[:, None] < other_ended - 0.005) & (other_began < ended[:, None] - 0.005)
    assert not overlaps.any()
    assert not list(tmp_path.glob("*/turn.*"))  # the pipes are gone


def test_workers_make_no_batches_in_the_others_turn(command: list[str], tmp_path: Path) -> None:
    loading = [*command, "--log-fetches", "--workers", "1"]
    found = run_in_turns(loading, ({}, tmp_path / "a"), ({}, tmp_path / "b"), seconds=3, timeout_s=120)
    assert [each.outcome for each in found] == ["ok", "ok"]
    times = [np.array([float(line) for line in file.read_text().splitlines()]) for file in tmp_path.glob("fetched-*")]
    assert len(times) == 2
    inside = 0
    for own, other in (times, times[::-1]):
        gaps = np.flatnonzero(np.diff(own) > 0.8)  # while the other stepped for a second
        assert len(gaps) >= 1
        inside += sum(int(np.sum((other > own[at]) & (other < own[at + 1]))) for at in gaps)
    assert inside > 20


def test_trials_that_are_in_each_others_way_run_alone(command: list[str], tmp_path: Path) -> None:
    settings: dict[str, dict[str, Any]] = {"before": {}, "after": {}}
    blocks = CommandBlocks([*command, "--alone"], settings, tmp_path / "trials", seconds=1, ends=float("inf"))
    found = list(blocks(("after", "before")))
    assert [side for side, _ in found] == ["after", "before"]
    assert [segment.outcome for _, segment in found] == ["ok", "ok"]
    assert [len(segment.turns) for _, segment in found] == [0, 0]


def test_a_training_that_knows_no_turns_runs_alone(tmp_path: Path) -> None:
    command = [sys.executable, str(RECORDED), "0.5"]
    found = run_in_turns(command, ({}, tmp_path / "a"), ({"num_workers": 2}, tmp_path / "b"), seconds=1, timeout_s=60)
    assert [each.outcome for each in found] == ["ok"]
    assert not (tmp_path / "b").exists()
    settings: dict[str, dict[str, Any]] = {"before": {}, "after": {"num_workers": 2}}
    blocks = CommandBlocks(command, settings, tmp_path / "trials", seconds=1, ends=float("inf"))
    both = dict(blocks(("before", "after")))
    assert both["after"].rate == pytest.approx(2 * both["before"].rate, rel=0.1)


@pytest.fixture
def pipes(tmp_path: Path) -> tuple[int, int]:
    for name in (TO_TRIAL, FROM_TRIAL):
        os.mkfifo(tmp_path / name)
    return os.open(tmp_path / TO_TRIAL, os.O_RDWR), os.open(tmp_path / FROM_TRIAL, os.O_RDWR | os.O_NONBLOCK)


def trainer(kind: str = "cpu", world_size: int = 1) -> Any:
    return SimpleNamespace(world_size=world_size, strategy=SimpleNamespace(root_device=SimpleNamespace(type=kind)))


@pytest.mark.parametrize("one", [trainer("cuda"), trainer(world_size=2)])
def test_accelerators_and_several_ranks_take_no_turns(tmp_path: Path, pipes: tuple[int, int], one: Any) -> None:
    turns = Turns(str(tmp_path))
    assert turns.end_step(one, 1) == 0
    assert os.read(pipes[1], 9) == ALONE
    assert turns.end_step(one, 2) == 0
    assert turns.ends == []


def test_a_turn_ends_between_steps_until_there_are_no_more(
    tmp_path: Path, pipes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_turns, "TURN_S", 0.0)
    turns = Turns(str(tmp_path))
    os.write(pipes[0], GO + GO + FREE)
    waited = [turns.end_step(trainer(), step) for step in range(1, 6)]
    assert os.read(pipes[1], 9) == READY + DONE + DONE
    assert turns.ends == [2, 3]
    assert waited[3:] == [0, 0]


def test_a_trial_whose_partner_is_gone_goes_on(
    tmp_path: Path, pipes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_turns, "PATIENCE_S", 0.05)
    turns = Turns(str(tmp_path))
    assert 0.05 <= turns.end_step(trainer(), 1) < 5
    assert turns.end_step(trainer(), 2) == 0
