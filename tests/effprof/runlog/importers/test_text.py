"""Lines as people keep them: colours, redrawn bars, prefixes, several ranks, restarts, endless and broken lines."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.sniff import read_foreign, recognise
from effprof.runlog.importers.text import MAX_LINE, clean, read_lines, to_number, to_rank, to_seconds, to_time


def titan(step: int, tps: str = "6,700", rank: int | None = None) -> str:
    prefix = "" if rank is None else f"[rank{rank}]:"
    return f"{prefix}[titan] 2025-01-02 03:04:05,678 - root - INFO - step: {step:2}  loss: 4.5  tps: {tps}  mfu: 20%"


def read(path: Path, *lines: str, end: str = "\n") -> ForeignLog:
    path.write_bytes((end.join(lines) + end).encode())
    return read_foreign(str(path))


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,234.5", 1234.5), ("5.9e-05", 5.9e-5), ("22.8K", 22800), ("85.8G", 85.8e9), ("-0.5", -0.5), ("1_000", 1000)],
)
def test_numbers_as_tools_print_them(text: str, number: float) -> None:
    assert to_number(text) == pytest.approx(number)


def test_what_is_no_number_is_none() -> None:
    assert math.isnan(to_number("n/a"))
    assert math.isnan(to_number("nan"))
    assert to_seconds("4 days, 7:18:24") == 4 * 86400 + 7 * 3600 + 18 * 60 + 24
    assert to_seconds("soon") is None
    assert to_time("[2024-10-24 21:02:23] iteration") == 1729803743
    assert to_time("[2024-13-45 21:02:23] iteration") is None


@pytest.mark.parametrize(
    ("line", "rank"),
    [
        ("[rank3]:[titan] x", 3),
        ("[default7]: iteration", 7),
        (" 12: Training", 12),
        ("[INFO|DP=2|PP=0]: x", 2),
        ("x", None),
    ],
)
def test_ranks_in_prefixes(line: str, rank: int | None) -> None:
    assert to_rank(line) == rank


def test_colours_and_redrawn_bars_are_lines(tmp_path: Path) -> None:
    assert clean("\x1b[32mstep: 1\x1b[0m  ") == "step: 1"
    path = tmp_path / "log"
    path.write_bytes(b"a\rb\rc\r\nd")
    assert [line for line in read_lines(str(path)) if line] == ["a", "b", "c", "d"]


def test_an_endless_line_is_cut_and_the_next_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (5 << 20) + b"\nnext\n")
    lines = list(read_lines(str(path)))
    assert [len(line) for line in lines] == [MAX_LINE, 4]


def test_colours_and_gzip_do_not_hide_a_format(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = "\n".join(f"\x1b[31m{titan(step)}\x1b[39m" for step in range(1, 9))
    path.write_bytes(gzip.compress(text.encode()))
    log = read_foreign(str(path))
    assert (log.format, log.records) == ("torchtitan", 8)


def test_ranks_that_print_the_same_step_are_one_record(tmp_path: Path) -> None:
    lines = [titan(step, rank=rank) for step in range(1, 11) for rank in (0, 1, 2)]
    log = read(tmp_path / "log", *lines)
    assert (log.records, log.repeated) == (10, 0)


def test_a_late_rank_is_no_restart(tmp_path: Path) -> None:
    order = [(1, 0), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1), (4, 1), (5, 1), (4, 0), (5, 0)]
    log = read(tmp_path / "log", *(titan(step, rank=rank) for step, rank in order))
    assert (log.columns["step"].tolist(), log.repeated) == ([1, 2, 3, 4, 5], 0)


def test_late_copies_without_a_label_are_no_restart(tmp_path: Path) -> None:
    log = read(tmp_path / "log", *(titan(step) for step in (1, 1, 2, 2, 3, 2, 3, 4, 4, 3, 5, 5)))
    assert (log.columns["step"].tolist(), log.repeated) == ([1, 2, 3, 4, 5], 0)


def test_after_a_restart_the_later_steps_count(tmp_path: Path) -> None:
    first = [titan(step, "1,000", rank) for step in range(1, 11) for rank in (0, 1)]
    later = [titan(step, "2,000", rank) for step in range(6, 13) for rank in (0, 1)]
    log = read(tmp_path / "log", *first, "Traceback (most recent call last):", *later)
    assert log.columns["step"].tolist() == list(range(1, 13))
    assert log.columns["tokens_per_s_per_device"].tolist() == [1000] * 5 + [2000] * 7
    assert log.repeated == 5


def test_broken_lines_and_losses_that_are_none_are_passed_over(tmp_path: Path) -> None:
    lines = [titan(step) for step in range(1, 9)]
    lines[3] = lines[3].replace("4.5", "nan")
    lines.append(titan(9)[:60])
    log = read(tmp_path / "log", *lines)
    assert log.records == 8
    assert math.isnan(log.columns["loss"][3])


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 400,
        b"[" * 100_000,
        ("step: 1 loss: 2 " * 4000 + "\n").encode() * 3,
        b"all is well\n" * 100,
    ],
    ids=["binary", "deep", "begins-like-a-step", "prose"],
)
def test_what_is_no_log_is_not_recognised(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "megatron.log"
    path.write_bytes(content)
    assert recognise(str(path)) is None
    with pytest.raises(EffprofError, match="nor a log of a known tool"):
        read_foreign(str(path))


def test_a_state_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_bytes(b'{"log_history":' * 10_000 + b'"global_step"')
    with pytest.raises(EffprofError, match=r"trainer_state\.json"):
        read_foreign(str(path))


def test_a_pointer_and_an_empty_file_are_named_so(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(EffprofError, match="Git LFS pointer"):
        read_foreign(str(path))
    path.write_text(" \n")
    with pytest.raises(EffprofError, match="empty"):
        read_foreign(str(path))
