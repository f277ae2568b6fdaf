"""Work on many ranks, spread over processes where that pays: the same results in the same order either way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from effprof.errors import EffprofError
from effprof.runlog.layout import SEGMENT

if TYPE_CHECKING:
    from concurrent.futures import Executor

Item = TypeVar("Item")
Result = TypeVar("Result")

# A process takes about a third of a second to start, in which one core reads some 40 MiB of log.
BYTES_PER_WORKER = 128 << 20


def in_order(executor: Executor | None, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each item, in the items' order; computed by `executor` where there is one.

    Args:
        executor: a process pool, `dask.distributed.Client.get_executor()`, or any other that keeps the interface.
        function: of a module, so that it can be sent to a process.
        items: what can be pickled.
    """
    return map(function, items) if executor is None else executor.map(function, items)


@contextmanager
def worker_pool(path: str, workers: int | None = None) -> Iterator[Executor | None]:
    """Processes to read and analyse the run at `path` with; None where one process is all it takes.

    Args:
        path: of the run; what is not on a local disk is read by one process unless told otherwise.
        workers: number of processes; by default one per 128 MiB of logs, at most one per rank and per core.

    Raises:
        EffprofError: `workers` is less than 1.
    """
    if workers is not None and workers < 1:
        raise EffprofError(f"--workers {workers}: not a number of processes", "give 1 or more")
    count = _useful_workers(path) if workers is None else workers
    if count < 2:
        yield None
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # fork would copy whatever threads the numerical libraries hold into a broken state
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def _useful_workers(path: str) -> int:
    ranks: set[str] = set()
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            match = SEGMENT.match(name)
            if match and match["role"] == "rank":
                ranks.add(match["number"])
                size += os.stat(os.path.join(folder, name)).st_size
    return min(len(ranks), len(os.sched_getaffinity(0)), size // BYTES_PER_WORKER)
