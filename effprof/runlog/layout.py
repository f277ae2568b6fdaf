"""Where a run lives on disk, which name it has, and which attempt a starting process belongs to.

    RUN/run.json
    RUN/attempt-000/rank-00000.ndjson        the live segment of rank 0
    RUN/attempt-000/rank-00000.000.ndjson    its closed, compacted segments, oldest first
    RUN/attempt-000/node-00000.ndjson        telemetry of node 0

All ranks find the same place without talking to each other: everything here follows from the environment, the
process tree and the directory itself.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from effprof.errors import EffprofError

RUN_FILE = "run.json"
RUNS_DIRECTORY = "effprof_runs"
SEGMENT = re.compile(r"^(?P<role>rank|node)-(?P<number>\d+)(?:\.(?P<segment>\d+))?\.ndjson$")
ATTEMPT = re.compile(r"^attempt-(?P<number>\d+)$")

# Names that a scheduler or launcher gives to every process of one job, most specific first.
_JOB_IDS = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID", "JOB_COMPLETION_INDEX_ID", "AZUREML_RUN_ID", "KUBEFLOW_RUN_ID")
# Left by the first process for the ones it launches (Lightning starts the other ranks of a node itself).
_INHERITED = "EFFPROF_INHERITED_RUN_ID"
# An attempt whose newest record is this much older than a process's start has ended before that process began.
_STALE_S = 60.0


def attempt_name(number: int) -> str:
    return f"attempt-{number:03d}"


def rank_file(rank: int, segment: int | None = None) -> str:
    """File name of a rank's live segment, or of its closed segment number `segment`."""
    return f"rank-{rank:05d}.ndjson" if segment is None else f"rank-{rank:05d}.{segment:03d}.ndjson"


def node_file(node: int) -> str:
    return f"node-{node:05d}.ndjson"


def process_start_s() -> float:
    """Unix time at which this process was started."""
    return float(psutil.Process().create_time())


def choose_run_id(world_size: int, environment: Mapping[str, str] | None = None) -> str:
    """The run's id, the same on every rank without a collective.

    Order: `EFFPROF_RUN_ID`, the scheduler's job id, torchrun's rendezvous id, the id the launching process left,
    the launcher's own identity where all ranks are its children, a fresh one for a single process.

    Raises:
        EffprofError: several processes and nothing they all know.
    """
    env = os.environ if environment is None else environment
    if env.get("EFFPROF_RUN_ID"):
        return _clean(env["EFFPROF_RUN_ID"])
    for name in _JOB_IDS:
        if env.get(name):
            return _clean(f"job-{env[name]}")
    elastic = env.get("TORCHELASTIC_RUN_ID", "")
    if elastic and elastic != "none":
        return _clean(f"torchrun-{elastic}")
    inherited = env.get(_INHERITED, "")
    if inherited and not inherited.startswith(f"{os.getpid()}:"):
        return inherited.split(":", 1)[1]
    if world_size == 1:
        return _stamp(time.time(), os.getpid())
    if env.get("LOCAL_WORLD_SIZE") == env.get("WORLD_SIZE", str(world_size)):
        # one launcher (torchrun's agent) started every rank: its pid and birth are known to all of them
        parent = psutil.Process(os.getppid())
        return _stamp(parent.create_time(), parent.pid)
    raise EffprofError(
        f"{world_size} processes and no id that they all know",
        "pass run_dir= to effprof, or set EFFPROF_RUN_ID to the same value on every rank",
    )


def leave_run_id_for_children(run_id: str) -> None:
    """Let processes that this one launches later find the same run; this process itself ignores the mark."""
    os.environ[_INHERITED] = f"{os.getpid()}:{run_id}"


def choose_attempt(run_dir: Path, rank: int, started_s: float) -> int:
    """The attempt a process of `rank`, started at Unix time `started_s`, belongs to.

    The newest attempt, if this rank has no log in it and its other logs are alive; else the one after it.
    """
    numbers = [int(match["number"]) for entry in _entries(run_dir) if (match := ATTEMPT.match(entry))]
    if not numbers:
        return 0
    newest = max(numbers)
    times: list[float] = []
    for entry in _entries(run_dir / attempt_name(newest)):
        match = SEGMENT.match(entry)
        if match is None:
            continue
        if match["role"] == "rank" and int(match["number"]) == rank:
            return newest + 1
        times.append((run_dir / attempt_name(newest) / entry).stat().st_mtime)
    ended_before = bool(times) and max(times) < started_s - _STALE_S
    return newest + 1 if ended_before else newest


def _entries(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.is_dir() else []


def _stamp(unix_s: float, pid: int) -> str:
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(unix_s)) + f"-{pid}"


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
