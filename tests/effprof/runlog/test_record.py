"""Writing and reading back: nothing is lost, a crash is survived, and what would make numbers wrong is refused."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest

from effprof.errors import EffprofError
from effprof.runlog import layout
from effprof.runlog.reader import find_runs, open_run
from effprof.runlog.schema import End, Event, Header, RunRecord, Span, Steps
from effprof.runlog.writer import RankWriter, write_run_record


def header(rank: int = 0, run_id: str = "r", attempt: int = 0) -> Header:
    return Header(
        run_id=run_id, role="rank", rank=rank, attempt=attempt, monotonic_ns=1_000, wall_s=100.0, process_start_s=99.0
    )


def block(first: int, n: int) -> Steps:
    steps = list(range(first, first + n))
    return Steps(
        n=n,
        columns={
            "step": list(steps),
            "end_ns": [2_000 + 10 * step for step in steps],
            "forward_ns": [7] * n,
            "tokens": [None if step % 7 == 3 else step for step in steps],
        },
    )


def write_run(
    directory: Path, blocks: int = 5, block_steps: int = 10, rotate_bytes: int = 1 << 20, ended: bool = True
) -> Path:
    write_run_record(directory, RunRecord(id="r"))
    writer = RankWriter(directory / "attempt-000", header(), rotate_bytes)
    for index in range(blocks):
        writer.write([block(index * block_steps, block_steps)])
    writer.write([Span(name="startup", start_ns=0, end_ns=1_500), Event(name="note", monotonic_ns=5, message="hello")])
    if ended:
        writer.write([End(status="completed", monotonic_ns=90_000)])
        writer.close()
    return directory / "attempt-000" / "rank-00000.ndjson"


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write_run(tmp_path)
    run = open_run(str(tmp_path))
    rank = run.attempts[0].ranks[0]
    assert run.record.id == "r"
    assert not run.problems
    assert rank.columns["step"].tolist() == list(range(50))
    assert np.isnan(rank.columns["tokens"][[3, 10, 17]]).all()
    assert rank.columns["tokens"][4] == 4
    assert rank.end is not None
    assert rank.last_ns == 90_000
    assert rank.wall(1_000 + 2_500_000_000) == 102.5


def test_closing_compacts_to_large_blocks_and_keeps_every_step(tmp_path: Path) -> None:
    path = write_run(tmp_path, blocks=300, block_steps=10)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    sizes = [line["n"] for line in lines if line["type"] == "steps"]
    assert sizes == [1000, 1000, 1000]
    assert [line["type"] for line in lines][-3:] == ["span", "event", "end"]
    assert open_run(str(tmp_path)).attempts[0].ranks[0].columns["step"].tolist() == list(range(3000))


def test_rotation_by_size_reads_as_one_log(tmp_path: Path) -> None:
    write_run(tmp_path, blocks=200, block_steps=10, rotate_bytes=8_000)
    segments = sorted(path.name for path in (tmp_path / "attempt-000").iterdir())
    assert len(segments) > 3
    assert segments[-1] == "rank-00000.ndjson"
    for path in (tmp_path / "attempt-000").iterdir():
        assert json.loads(path.read_text().splitlines()[0])["type"] == "header"
    assert open_run(str(tmp_path)).attempts[0].ranks[0].columns["step"].tolist() == list(range(2000))


def test_a_torn_last_line_is_skipped_and_counted(tmp_path: Path) -> None:
    path = write_run(tmp_path, ended=False)
    with path.open("ab") as file:
        file.write(b'{"type":"steps","n":3,"colu')
    run = open_run(str(tmp_path))
    rank = run.attempts[0].ranks[0]
    assert rank.torn
    assert rank.skipped_lines == 1
    assert rank.steps == 50
    assert rank.end is None
    assert [problem.code for problem in run.problems] == ["torn_line"]


def test_unknown_types_and_fields_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"type":"hologram","x":1}\n{"type":"event","name":"n","monotonic_ns":9,"new_field":[1]}\n')
    run = open_run(str(tmp_path))
    assert [problem.code for problem in run.problems] == ["unknown_lines"]
    assert [event.name for event in run.attempts[0].ranks[0].events] == ["note", "n"]


def test_one_log_alone_can_be_read(tmp_path: Path) -> None:
    run = open_run(str(write_run(tmp_path)))
    assert run.attempts[0].ranks[0].steps == 50
    assert run.problems[0].code == "single_log"


def test_logs_in_an_object_store_are_read(tmp_path: Path) -> None:
    write_run(tmp_path)
    remote = fsspec.filesystem("memory")
    remote.put(str(tmp_path), "/store/stored-run", recursive=True)
    run = open_run("memory://store/stored-run")
    assert run.attempts[0].ranks[0].steps == 50
    assert find_runs("memory://store") == ["memory://store/stored-run"]


def test_a_killed_rank_rejoins_as_a_new_attempt(tmp_path: Path) -> None:
    write_run(tmp_path, ended=False)
    now = layout.process_start_s()
    assert layout.choose_attempt(tmp_path, rank=0, started_s=now) == 1
    assert layout.choose_attempt(tmp_path, rank=1, started_s=now) == 0  # a sibling of the attempt that just began
    assert layout.choose_attempt(tmp_path, rank=1, started_s=now + 3600) == 1  # that attempt is long over
    assert layout.choose_attempt(tmp_path / "new", rank=3, started_s=now) == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"EFFPROF_RUN_ID": "mine", "SLURM_JOB_ID": "7"}, "mine"),
        ({"SLURM_JOB_ID": "7"}, "job-7"),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}, "job-7.2"),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bash", "TORCHELASTIC_RUN_ID": "abc"}, "torchrun-abc"),
        ({"TORCHELASTIC_RUN_ID": "abc"}, "torchrun-abc"),
        ({"EFFPROF_RUN_ID": "../up/and/away"}, "up-and-away"),
    ],
)
def test_ranks_take_the_id_they_all_know(environment: dict[str, str], expected: str) -> None:
    assert layout.choose_run_id(16, environment=environment) == expected


def test_ranks_of_one_launcher_agree_and_others_are_asked_for_run_dir() -> None:
    one_node = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    assert layout.choose_run_id(4, environment=one_node) == layout.choose_run_id(4, environment=one_node)
    with pytest.raises(EffprofError, match="run_dir="):
        layout.choose_run_id(
            16, environment={"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
        )


def spoil(path: Path, old: bytes, new: bytes) -> None:
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, 1))


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-5"])
def test_times_that_are_no_times_are_refused(tmp_path: Path, value: bytes) -> None:
    path = write_run(tmp_path)
    spoil(path, b'"forward_ns":[7,', b'"forward_ns":[' + value + b",")
    with pytest.raises(EffprofError, match="finite"):
        open_run(str(tmp_path))


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(EffprofError) as caught:
            open_run(str(path))
        assert caught.value.hint
        assert caught.value.exit_code == 2
        return caught.value.message

    assert "no such" in refused(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty directory" in refused(empty)
    text = tmp_path / "text.log"
    text.write_text("epoch 1 loss 2.3\n")
    assert "not an effprof log" in refused(text)

    path = write_run(tmp_path / "newer") if (tmp_path / "newer").mkdir() is None else None
    assert path
    spoil(path, b"effprof.log/1", b"effprof.log/2")
    assert "effprof.log/2" in refused(tmp_path / "newer")

    (tmp_path / "cut").mkdir()
    path = write_run(tmp_path / "cut")
    path.write_bytes(path.read_bytes()[:40])
    assert "cut inside its first line" in refused(tmp_path / "cut")

    (tmp_path / "two").mkdir()
    write_run(tmp_path / "two")
    RankWriter(tmp_path / "two" / "attempt-000", header(rank=1, run_id="other")).close()
    assert "2 runs" in refused(tmp_path / "two")

    (tmp_path / "old").mkdir()
    write_run(tmp_path / "old")
    spoil(tmp_path / "old" / "run.json", b"effprof.run/1", b"effprof.run/9")
    assert "effprof.run/9" in refused(tmp_path / "old")


def test_a_second_writer_of_the_same_rank_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, ended=False)
    with pytest.raises(FileExistsError):
        RankWriter(tmp_path / "attempt-000", header())
