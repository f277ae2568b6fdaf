"""Which run a path means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from effprof.analysis.locate import locate_run


def aged(run: Any, seconds_ago: float) -> None:
    for path in [run.path, *run.path.rglob("*")]:
        moment = 1_700_000_000 - seconds_ago
        os.utime(path, (moment, moment))


def test_a_run_is_itself(simple_run: Any) -> None:
    assert locate_run(str(simple_run.path)) == (str(simple_run.path), "")
    assert locate_run(f"{simple_run.path}/")[0].rstrip("/") == str(simple_run.path)
    assert locate_run(f"{simple_run.path}/run.json") == (f"{simple_run.path}/run.json", "")


def test_an_attempt_is_its_run(simple_run: Any) -> None:
    assert locate_run(f"{simple_run.path}/attempt-000") == (str(simple_run.path), "")


def test_a_directory_of_runs_is_its_newest_and_says_so(tmp_path: Path, hand_made: Any) -> None:
    parent = tmp_path / "effprof_runs"
    for name, age in (("z-old", 900), ("b-new", 10), ("c-older", 1000)):
        aged(hand_made(parent / name).record().rank([hand_made.step()]), age)
    path, note = locate_run(str(parent))
    assert path == str(parent / "b-new")
    assert note == f"{parent} holds 3 runs; this is the newest, b-new"
    # the working directory of the training, one level up
    assert locate_run(str(tmp_path))[0] == str(parent / "b-new")


def test_a_directory_with_one_run_needs_no_note(tmp_path: Path, hand_made: Any) -> None:
    hand_made(tmp_path / "runs" / "only").record().rank([hand_made.step()])
    assert locate_run(str(tmp_path / "runs")) == (str(tmp_path / "runs" / "only"), "")


def test_anything_else_is_left_to_the_reader(tmp_path: Path) -> None:
    for path in (str(tmp_path), str(tmp_path / "missing"), "memory://run"):
        assert locate_run(path) == (path, "")
