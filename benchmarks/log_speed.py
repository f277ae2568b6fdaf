"""How fast a run's record is read back, and what reading it takes in memory as the ranks grow.

    python benchmarks/log_speed.py                     # about five minutes on two cores
    python benchmarks/log_speed.py --ranks 1 4 --steps 2000   # quick

Logs are written by the real writer with the callback's own columns: in blocks of 1, 10 and 1,000 steps, as they lie on
disk while a training runs, and after compaction. A step record is one optimizer step of one rank. Reading is measured
in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from common import summarise, write_result
from tabulate import tabulate

from effprof.runlog.schema import End, FlopsRecord, Header, Line, Memory, RunRecord, Span, Steps
from effprof.runlog.writer import RankWriter, write_run_record

# What the callback writes on a CPU for a language model: see a real log.
PHASES = ("input_wait", "host_to_device", "forward", "backward", "optimizer", "other", "effprof")
COUNTERS = {"tokens": 3900, "loss_tokens": 3892, "pairs": 1_900_000}
FIXED = {"micro_batches": 4, "samples": 8, "positions": 4096}  # the same in every step, as with most loaders
START_NS, STEP_NS = 5_000_000_000_000, 100_000_000
STEPS = 50_000
RANKS = (1, 64, 1024)


def write_rank(directory: Path, rank: int, ranks: int, steps: int, block: int, is_compacted: bool) -> None:
    """One rank's log of `steps` steps in blocks of `block`, with a memory line a second."""
    header = Header(
        run_id="speed",
        role="rank",
        rank=rank,
        world_size=ranks,
        data_parallel_rank=rank,
        data_parallel_size=ranks,
        host=f"node-{rank // 8}",
        device={"type": "cuda", "name": "NVIDIA H100 80GB HBM3", "index": rank % 8},
        monotonic_ns=START_NS,
        wall_s=1_760_000_000.0,
        process_start_s=1_759_999_990.0,
    )
    writer = RankWriter(directory, header)
    noise = random.Random(rank)
    writer.write([Span(name="startup", start_ns=START_NS - 10**10, end_ns=START_NS)])
    end_ns = START_NS
    for first in range(0, steps, block):
        n = min(block, steps - first)
        columns: dict[str, list[Any]] = {name: [] for name in ("step", "end_ns")}
        columns |= {f"{phase}_ns": [] for phase in PHASES} | {name: [] for name in COUNTERS}
        columns |= {name: [value] * n for name, value in FIXED.items()}
        for number in range(first + 1, first + n + 1):
            shares = [noise.randint(1, STEP_NS // 4) for _ in PHASES]
            end_ns += sum(shares)
            columns["step"].append(number)
            columns["end_ns"].append(end_ns)
            for phase, share in zip(PHASES, shares, strict=True):
                columns[f"{phase}_ns"].append(share)
            for name, value in COUNTERS.items():
                columns[name].append(value - noise.randint(0, 100))
        lines: list[Line] = [Steps(n=n, columns=columns)]
        if first % 10 == 0:
            lines.append(
                Memory(monotonic_ns=end_ns, step=first, peak_allocated_bytes=60 << 30, process_rss_bytes=1 << 30)
            )
        writer.write(lines)
    writer.write([End(status="completed", monotonic_ns=end_ns)])
    if is_compacted:
        writer.close()
    else:
        os.close(writer._descriptor)  # as a kill leaves it: `close` would compact


def write_run(run: Path, ranks: int, steps: int, block: int, is_compacted: bool) -> int:
    """A run's record; returns the bytes of its logs."""
    directory = run / "attempt-000"
    for rank in range(ranks):
        write_rank(directory, rank, ranks, steps, block, is_compacted)
    record = RunRecord(
        id="speed",
        flops=FlopsRecord(conventions={"exact": {"tokens": 5e10, "pairs": 1e5}}, source="closed_form"),
        hardware={"peak": {"flops_per_s": 989.4e12, "dtype": "bf16"}},
    )
    write_run_record(run, record)
    return sum(file.stat().st_size for file in directory.iterdir())


def measure(run: Path, what: str) -> dict[str, float]:
    """Seconds and peak memory of a process that reads (`open`) or analyses (`analyze`) the run."""
    command = [sys.executable, __file__, "--measure", what, str(run)]
    done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    figures: dict[str, float] = msgspec.json.decode(done.stdout)
    return figures


def measure_here(what: str, run: str) -> None:
    """In the measured process: do it, print the figures."""
    import importlib
    import resource

    from effprof.analysis.analyze import analyze
    from effprof.runlog.reader import open_run

    importlib.import_module("numpy")  # what that takes is no part of reading
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began, began_cpu = time.perf_counter(), time.thread_time()
    opened = open_run(run)
    # of a core, and of this thread: other work on the machine is not ours, nor is how numpy's idle threads start
    read_s = time.thread_time() - began_cpu
    if what == "analyze":
        analyze(opened)
    figures = {
        "read_s": read_s,
        "seconds": time.perf_counter() - began,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "before_bytes": before,
    }
    print(json.dumps(figures))


def measure_layouts(folder: Path, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Reading one rank's log in each layout."""
    found = []
    for block, is_compacted in ((1, False), (10, False), (1000, False), (1, True), (10, True)):
        run = folder / f"block-{block}-{is_compacted}"
        began = time.perf_counter()
        size = write_run(run, 1, steps, block, is_compacted)
        rates = [steps / measure(run, "open")["read_s"] for _ in range(repeats)]
        found.append(
            {
                "block": block,
                "is_compacted": is_compacted,
                "records_per_s": summarise(rates),
                "bytes_per_record": round(size / steps, 1),
                "write_s": round(time.perf_counter() - began, 2),
            }
        )
    return found


def measure_ranks(folder: Path, ranks: list[int], steps: int) -> list[dict[str, Any]]:
    """Reading and analysing compacted logs of more and more ranks."""
    found = []
    for number in ranks:
        run = folder / f"ranks-{number}"
        size = write_run(run, number, steps, 1000, True)
        figures = measure(run, "analyze")
        found.append(
            {
                "ranks": number,
                "steps": steps,
                "log_bytes": size,
                "records_per_s": round(number * steps / figures["read_s"]),
                "analyze_s": round(figures["seconds"], 2),
                "peak_bytes": figures["peak_bytes"],
                "added_bytes": figures["peak_bytes"] - figures["before_bytes"],
            }
        )
        print(found[-1], file=sys.stderr)
    return found


def main() -> int:
    """Measure, print two tables, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--rank-steps", type=int, default=1000, help="steps of each rank as the ranks grow")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_here(*arguments.measure)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        layouts = measure_layouts(Path(temporary), arguments.steps, arguments.repeats)
        ranks = measure_ranks(Path(temporary), arguments.ranks, arguments.rank_steps)
    write_result("log-speed", {"layouts": layouts, "ranks": ranks}, arguments.out)
    rows = [
        [
            f"{row['block']:,}" + (", compacted" if row["is_compacted"] else ""),
            f"{row['records_per_s']['median']:,.0f}",
            f"{row['records_per_s']['min']:,.0f} … {row['records_per_s']['max']:,.0f}",
            f"{row['bytes_per_record']:.0f}",
        ]
        for row in layouts
    ]
    heads = ["steps a block", "step records/s", "lowest … highest", "bytes a record"]
    print(tabulate(rows, headers=heads, tablefmt="pipe", disable_numparse=True), end="\n\n")
    rows = [
        [
            f"{row['ranks']:,} × {row['steps']:,}",
            f"{row['log_bytes'] / 2**20:,.0f} MiB",
            f"{row['records_per_s']:,}",
            f"{row['analyze_s']:.1f} s",
            f"{row['peak_bytes'] / 2**20:,.0f} MiB",
        ]
        for row in ranks
    ]
    heads = ["ranks × steps", "logs", "step records/s", "read and analysed in", "peak memory"]
    print(tabulate(rows, headers=heads, tablefmt="pipe", disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
