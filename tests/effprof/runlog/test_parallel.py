"""Ranks read and analysed by several processes give the very same analysis as one process."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from effprof.analysis.analyze import analyze
from effprof.errors import EffprofError
from effprof.runlog import parallel, reader
from effprof.runlog.parallel import in_order, worker_pool
from effprof.runlog.reader import open_run
from effprof.runlog.schema import Kernels


def restarted_run(path: Path, hand_made: Any) -> Any:
    """Three of four ranks over two attempts; the second resumes earlier, lacks a rank, and holds a kernel window."""
    run = hand_made(path).record()
    window = Kernels(
        monotonic_ns=5_009_000_000_000,
        first_step=25,
        steps=2,
        trigger="schedule",
        basis="device",
        window_s=0.2,
        lines={"step.forward": 0.07, "step.backward": 0.1, "step.exposed_communication": 0.03},
    )
    for rank in range(3):
        steps = [run.step(0.1 + 0.001 * rank + 0.0003 * (number % 7)) for number in range(30)]
        run.rank(steps, rank=rank, world_size=4, end=None)
    for rank in range(2):
        steps = [run.step(0.1 + 0.002 * rank + 0.0007 * (number % 5)) for number in range(40)]
        run.rank(steps, rank=rank, world_size=4, attempt=1, start_s=9.0, first_step=21, lines=[window])
    log = run.path / "attempt-001" / "rank-00001.ndjson"
    log.write_bytes(log.read_bytes()[:-20])  # torn
    return run


@pytest.mark.parametrize("ranks_in_memory", [16, 1])  # from the second number on the columns are kept in a file
def test_several_processes_give_the_same_analysis(
    tmp_path: Path, hand_made: Any, monkeypatch: pytest.MonkeyPatch, ranks_in_memory: int
) -> None:
    monkeypatch.setattr(reader, "RANKS_IN_MEMORY", ranks_in_memory)
    path = str(restarted_run(tmp_path / "r", hand_made).path)
    alone = msgspec.json.encode(analyze(open_run(path), now_s=0.0))
    with worker_pool(path, 2) as executor:
        assert executor is not None
        together = msgspec.json.encode(analyze(open_run(path, executor), now_s=0.0, executor=executor))
    assert together == alone
    assert b"torn_line" in alone
    assert b"missing_ranks" in alone


def test_refusals_come_back_from_other_processes(tmp_path: Path, hand_made: Any) -> None:
    run = restarted_run(tmp_path / "r", hand_made)
    (run.path / "attempt-001" / "rank-00002.ndjson").write_text("{")
    with (
        worker_pool(str(run.path), 2) as executor,
        pytest.raises(EffprofError, match="cut inside its first line") as no,
    ):
        open_run(str(run.path), executor)
    assert "remove this file" in no.value.hint


def test_results_come_in_the_order_of_the_items() -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert list(in_order(executor, abs, range(-5, 5))) == list(in_order(None, abs, range(-5, 5)))


def test_a_small_run_is_read_by_one_process(simple_run: Any) -> None:
    with worker_pool(str(simple_run.path)) as executor:
        assert executor is None


def test_the_number_of_processes_follows_bytes_ranks_and_cores(
    tmp_path: Path, hand_made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(restarted_run(tmp_path / "r", hand_made).path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(parallel, "BYTES_PER_WORKER", 10)
    assert parallel._useful_workers(path) == 3  # ranks
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert parallel._useful_workers(path) == 2


def test_no_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EffprofError, match="not a number of processes"), worker_pool(str(tmp_path), 0):
        pass
