"""Kill a training at a random moment, many times: is the record readable, and how much of it is lost?

    python benchmarks/kill.py --times 20

The training writes each step's end into a side file of its own with one system call, which SIGKILL can't take back;
a step that the file knows and effprof's record doesn't was lost. What is lost is counted from the end of the first
such step to the kill, because a step that never ended can't be recorded as one.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from common import summarise, write_result

from effprof.runlog.reader import open_run

TRAINING = Path(__file__).resolve().with_name("kill_training.py")
START_LIMIT_S = 120.0


@dataclass(frozen=True)
class Killed:
    """What one SIGKILL left behind."""

    after_s: float  # from the first step's end to the signal
    steps_done: int
    steps_recorded: int
    lost_s: float  # from the end of the first step that is not recorded to the signal; 0 if all are
    silent_s: float  # from the last moment that the record knows of to the signal
    has_end: bool
    is_torn: bool
    orphans: int  # processes of the training that were still alive 5 s later


def read_stamps(path: Path) -> list[tuple[int, int]]:
    """(step, end on the monotonic clock in ns) of every step the training finished."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(step), int(end)) for step, end in (line.split() for line in lines)]


def kill_once(folder: Path, after_s: float, telemetry: bool = True) -> Killed:
    """Start a training under `folder`, SIGKILL it `after_s` after its first step, compare its record with its stamps.

    Raises:
        RuntimeError: the training ended by itself or never finished a step.
        EffprofError: the record can't be read.
    """
    run_dir, stamps = folder / "run", folder / "stamps"
    command = [sys.executable, str(TRAINING), str(run_dir), str(stamps), *([] if telemetry else ["--no-telemetry"])]
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + START_LIMIT_S
    while not read_stamps(stamps):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"the training finished no step:\n{(folder / 'output').read_text()[-2000:]}")
        time.sleep(0.02)
    time.sleep(after_s)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    killed_ns = time.monotonic_ns()
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"the training ended before it was killed:\n{(folder / 'output').read_text()[-2000:]}")
    _, alive = psutil.wait_procs(family, timeout=5)
    done = read_stamps(stamps)
    rank = open_run(str(run_dir)).attempts[-1].ranks[0]
    steps = [int(step) for step in rank.columns.get("step", ())]
    ends = rank.columns.get("end_ns", ())
    if any(step != witnessed for step, (witnessed, _) in zip(steps, done, strict=False)):
        raise RuntimeError(f"the record's steps are not the training's: {steps[:5]}…{steps[-5:]}")
    if steps and steps[-1] in dict(done) and abs(ends[-1] - dict(done)[steps[-1]]) > 50e6:
        raise RuntimeError(f"the record's last step, {steps[-1]}, ends at another time than the training's")
    missing = [end for _, end in done[len(steps) :]]
    return Killed(
        after_s=after_s,
        steps_done=len(done),
        steps_recorded=len(steps),
        lost_s=max(0, killed_ns - missing[0]) / 1e9 if missing else 0.0,
        silent_s=(killed_ns - rank.last_ns) / 1e9,
        has_end=rank.end is not None,
        is_torn=rank.torn,
        orphans=len(alive),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to write the JSON (default: benchmarks/results)")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    kills = []
    for index in range(options.times):
        with tempfile.TemporaryDirectory() as folder:
            kills.append(kill_once(Path(folder), moments.uniform(0.0, 4.0)))
        last = kills[-1]
        print(
            f"{index + 1:3d}  killed after {last.after_s:.2f} s: {last.steps_recorded} of {last.steps_done} steps "
            f"recorded, {last.lost_s:.3f} s lost, {last.silent_s:.3f} s silent",
            flush=True,
        )
    lost = [kill.lost_s for kill in kills]
    print(f"every run readable; lost at most {max(lost):.3f} s")
    figures = {
        "times": options.times,
        "lost_s": summarise(lost),
        "silent_s": summarise([k.silent_s for k in kills]),
        "kills": [asdict(kill) for kill in kills],
    }
    print("written to", write_result("kill", figures, options.out))
    sys.exit(max(lost) > 1.0 or any(kill.orphans for kill in kills))


if __name__ == "__main__":
    main()
