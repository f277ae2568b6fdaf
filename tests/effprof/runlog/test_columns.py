"""Columns joined from blocks of any size, and kept in a file for jobs of many ranks."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from effprof.analysis.analyze import analyze
from effprof.errors import EffprofError
from effprof.runlog import reader
from effprof.runlog.columns import BulkBlock, ColumnFile, FiledColumns, Joiner, StepBlock
from effprof.runlog.reader import open_run


def block(first: int, n: int, **more: list[float | None]) -> StepBlock:
    end_ns = [float(1000 * number) for number in range(first, first + n)]
    return StepBlock(n=n, columns={"end_ns": end_ns, **more})


def test_blocks_of_any_size_and_columns_join_in_order() -> None:
    joiner = Joiner("log")
    joiner.add(block(0, 1))
    joiner.add(block(1, 1, tokens=[7.0]))
    joiner.add(block(2, 2, tokens=[None, 8.0]))
    joiner.add(block(4, 3000, tokens=[9.0] * 3000))
    following = Joiner("log")
    following.add(block(3004, 1))
    joiner.extend(following)
    joiner.add(block(3005, 1, tokens=[1.0]))
    columns = joiner.join()
    assert columns["end_ns"].tolist() == [1000.0 * number for number in range(3006)]
    expected = [np.nan, 7, np.nan, 8, *[9] * 3000, np.nan, 1]
    np.testing.assert_array_equal(columns["tokens"], expected)


def test_a_short_column_is_refused() -> None:
    with pytest.raises(EffprofError, match="tokens is shorter"):
        Joiner("log").add(block(0, 3, tokens=[1.0]))


@pytest.mark.parametrize(
    "values",
    [
        "[5000000000001,5000000000002,7]",
        "[0,-3,12]",
        "[1,null,2.5]",
        "[9007199254740993,4611686018427387904,9223372036854775808]",  # rounded, and beyond numpy's integers
        "[123456789012345678901234567890,1,2]",
        "[ 1, 2,3 ]",
        "[1e3,2E-2,-0.5]",
    ],
)
def test_columns_of_large_blocks_hold_the_numbers_that_small_ones_hold(values: str) -> None:
    line = b'{"type":"steps","n":3,"columns":{"tokens":%s}}' % values.encode()
    bulk = msgspec.json.decode(line, type=BulkBlock).arrays()["tokens"]
    small = np.array(msgspec.json.decode(line, type=StepBlock).columns["tokens"], np.float64)
    assert bulk.tobytes() == small.tobytes()


@pytest.mark.parametrize("values", ["[1,2-3]", "[--1]", "[01]", '["1"]', "[[1]]", "[NaN]", "[1,]", "12", "[true]"])
def test_columns_of_large_blocks_refuse_what_is_no_number(values: str) -> None:
    line = b'{"type":"steps","n":1,"columns":{"tokens":%s}}' % values.encode()
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(line, type=BulkBlock).arrays()


def test_a_short_column_of_a_large_block_is_refused() -> None:
    with pytest.raises(EffprofError, match="tokens is shorter"):
        Joiner("log").add_arrays(3, {"tokens": np.zeros(2)})


def test_columns_in_a_file_read_back_and_leave_nothing_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = ColumnFile()
    tokens = [np.array([1.0, np.nan, 3, 4, rank]) for rank in range(3)]
    kept = [file.put({"end_ns": np.arange(5.0) + rank, "tokens": own}) for rank, own in enumerate(tokens)]
    del file  # the columns keep it
    for rank, columns in enumerate(kept):
        assert list(columns) == ["end_ns", "tokens"]
        assert columns.length() == 5
        assert columns["end_ns"].tolist() == [rank, rank + 1, rank + 2, rank + 3, rank + 4]
        np.testing.assert_array_equal(columns["tokens"], [1, np.nan, 3, 4, rank])
        assert columns.get("flops") is None
    columns["end_ns"][0] = 99  # an array of the caller's own
    assert columns["end_ns"][0] == 2
    del kept, columns
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_ranks_give_the_same_analysis_from_a_file(
    hand_made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = hand_made(tmp_path / "run").record()
    for rank in range(6):
        steps = [run.step(0.1 + 0.01 * rank, evaluation=0.5 if rank == 2 and n == 30 else 0.0) for n in range(60)]
        run.rank(steps, rank=rank, world_size=6)
    in_memory = open_run(str(run.path))
    monkeypatch.setattr(reader, "RANKS_IN_MEMORY", 2)
    in_file = open_run(str(run.path))
    assert isinstance(in_memory.attempts[0].ranks[0].columns, dict)
    assert isinstance(in_file.attempts[0].ranks[0].columns, FiledColumns)
    assert in_file.attempts[0].ranks[3].steps == 60
    now_s = 1.8e9
    first, second = analyze(in_memory, now_s=now_s), analyze(in_file, now_s=now_s)
    assert msgspec.json.encode(first) == msgspec.json.encode(second)
