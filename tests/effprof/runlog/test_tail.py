"""A run that is being written is followed: only what is new is read, and only the latest steps are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effprof.analysis.analyze import analyze
from effprof.analysis.current import current
from effprof.errors import EffprofError
from effprof.runlog.reader import open_run
from effprof.runlog.tail import ENTER_BYTES, FileTail, RunTail, require_run

LOG = "attempt-000/rank-00000.ndjson"


def grow(path: Path, text: bytes) -> None:
    with open(path, "ab") as file:
        file.write(text)


def test_a_look_reads_what_is_new_and_nothing_else(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 30)
    log = run.path / LOG
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]))
    tail = RunTail(str(run.path))
    first = tail.poll()
    assert first is not None
    assert first.attempts[0].ranks[0].steps == 0
    read = tail.read_bytes
    assert tail.poll() is not None
    assert tail.read_bytes == read
    rest = b"".join(lines[2:])
    grow(log, rest[:100])  # a line that is still being written
    assert tail.poll() is not None
    grow(log, rest[100:])
    last = tail.poll()
    assert last is not None
    assert last.attempts[0].ranks[0].steps == 30
    assert last.attempts[0].ranks[0].end is not None
    assert tail.read_bytes - read <= len(rest) + 100  # the torn line twice


def test_the_latest_steps_are_kept_and_analysed_as_ever(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    steps = [run.step(0.1 + 0.001 * (index % 7)) for index in range(50)]
    for rank in range(2):
        run.rank(steps, rank=rank, world_size=2)
    tail = RunTail(str(run.path), steps=1000)
    seen = tail.poll()
    assert seen is not None
    now, whole = current(seen, now_s=2e9), analyze(open_run(str(run.path)), now_s=2e9).efficiency
    assert (now.mfu.value, now.tokens_per_s, now.step_time_s.median) == (
        *(whole.mfu.value, whole.tokens_per_s, whole.step_time_s.median),
    )
    assert now.ended == "completed"
    few = RunTail(str(run.path), steps=10).poll()
    assert few is not None
    assert [rank.steps for rank in few.attempts[0].ranks] == [10, 10]
    assert current(few, now_s=2e9).step == 50


def test_a_long_log_is_entered_near_its_end(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 30)
    log = run.path / LOG
    header, _, rest = log.read_bytes().partition(b"\n")
    padding = b'{"type":"event","name":"old","monotonic_ns":5000000000000,"message":"' + b"x" * 900 + b'"}\n'
    log.write_bytes(header + b"\n" + padding * (2 * ENTER_BYTES // len(padding)) + rest)
    tail = FileTail(log)
    found = list(tail.poll())
    assert tail.header is not None
    assert tail.read_bytes < ENTER_BYTES + len(header) + 10
    assert type(found[-1]).__name__ == "End"


def test_a_new_segment_and_a_new_attempt_are_followed(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 5, end=None)
    tail = RunTail(str(run.path))
    assert tail.poll() is not None
    log = run.path / LOG
    log.rename(log.with_name("rank-00000.000.ndjson"))
    run.rank([run.step(0.1)] * 3, start_s=5.0, first_step=6, end=None)
    rotated = tail.poll()
    assert rotated is not None
    assert rotated.attempts[0].ranks[0].steps == 8
    run.rank([run.step(0.2)] * 4, attempt=1, start_s=9.0, first_step=5)
    again = tail.poll()
    assert again is not None
    assert (again.attempts[0].index, again.attempts[0].ranks[0].steps) == (1, 4)


def test_steps_between_a_look_and_a_rotation_are_read(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 30, end=None)
    log = run.path / LOG
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]))
    tail = RunTail(str(run.path))
    assert tail.poll() is not None
    grow(log, b"".join(lines[2:]))
    log.rename(log.with_name("rank-00000.000.ndjson"))
    run.rank([run.step(0.1)] * 3, start_s=5.0, first_step=31, end=None)
    seen = tail.poll()
    assert seen is not None
    assert seen.attempts[0].ranks[0].steps == 33


def test_what_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    assert RunTail(str(tmp_path)).poll() is None
    (tmp_path / "attempt-000").mkdir()
    (tmp_path / LOG).write_bytes(b'{"type":"header","sch')
    assert RunTail(str(tmp_path)).poll() is None


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"hello\n", "not an effprof log"), (b'{"schema":"effprof.log/99"}\n', "upgrade effprof")],
)
def test_what_is_not_effprof_s_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "attempt-000").mkdir()
    (tmp_path / LOG).write_bytes(content)
    with pytest.raises(EffprofError, match=says):
        RunTail(str(tmp_path)).poll()


def test_paths_that_can_become_no_run_are_refused(tmp_path: Path) -> None:
    require_run(str(tmp_path))
    (tmp_path / "train.log").write_text("step 1")
    for path, says in ((tmp_path / "train.log", "a file"), (tmp_path / "no", "no such"), (tmp_path, "not a run")):
        with pytest.raises(EffprofError, match=says):
            require_run(str(path))
