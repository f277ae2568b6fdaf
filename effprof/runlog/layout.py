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

from effprof.errors import EffprofError

RUN_FILE = "run.json"
RUNS_DIRECTORY = "effprof_runs"
SEGMENT = re.compile(r"^(?P<role>rank|node)-(?P<number>\d+)(?:\.(?P<segment>\d+))?\.ndjson$")
ATTEMPT = re.compile(r"^attempt-(?P<number>\d+)$")

# Names that a scheduler gives to every process of one job.
_JOB_IDS = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID", "AZUREML_RUN_ID")
# An allocation someone works in by hand starts many runs under one job id.
INTERACTIVE_JOBS = ("bash", "sh", "zsh", "interactive")
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
    import psutil  # takes a while, and only those who write a log need it

    return float(psutil.Process().create_time())


def choose_run_id(
    world_size: int,
    nodes: int = 1,
    own_id: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """The run's id, the same on every rank without a collective.

    Order: `EFFPROF_RUN_ID`, the scheduler's job, torchrun's rendezvous id, the id left by the process that launched
    this one, the launcher's own identity where all ranks are its children, `own_id` or a fresh one for a process
    that is alone or launches the others itself.

    Args:
        world_size: processes in the job.
        nodes: machines they run on.
        own_id: what `prepare_own_id` gave this process.
        environment: for tests; the process's own by default.

    Raises:
        EffprofError: several processes and nothing they all know.
    """
    env = os.environ if environment is None else environment
    known = _common_id(env)
    if known:
        return _clean(known)
    inherited = inherited_id(env)
    if inherited:
        return inherited
    if world_size > 1 and "LOCAL_WORLD_SIZE" in env:
        if env["LOCAL_WORLD_SIZE"] == env.get("WORLD_SIZE", str(world_size)):
            # one launcher (torchrun's agent) started every rank: its pid and birth are known to all of them
            import psutil

            parent = psutil.Process(os.getppid())
            return _stamp(parent.create_time(), parent.pid)
    elif world_size == 1 or (nodes == 1 and own_id):
        return own_id or _stamp(time.time(), os.getpid())
    raise EffprofError(
        f"{world_size} processes and no id that they all know",
        "pass run_dir= to effprof, or set EFFPROF_RUN_ID to the same value on every rank",
    )


def prepare_own_id() -> str | None:
    """An id for this process and for ranks that it launches later; None in a process launched that way.

    Left in the environment, where children find it. Only a direct child that was given a rank takes it over, so
    that unrelated trainings started from one shell or notebook don't end up in one run.
    """
    if inherited_id(os.environ):
        return None
    run_id = _stamp(time.time(), os.getpid())
    os.environ[_INHERITED] = f"{os.getpid()}:{run_id}"
    return run_id


def inherited_id(environment: Mapping[str, str]) -> str | None:
    """The run id that the parent process left for the ranks it launched."""
    parent, _, run_id = environment.get(_INHERITED, "").partition(":")
    return run_id if run_id and "LOCAL_RANK" in environment and parent == str(os.getppid()) else None


def _common_id(env: Mapping[str, str]) -> str:
    if env.get("EFFPROF_RUN_ID"):
        return env["EFFPROF_RUN_ID"]
    is_interactive = env.get("SLURM_JOB_NAME") in INTERACTIVE_JOBS
    for name in _JOB_IDS:
        if env.get(name) and not (is_interactive and name == "SLURM_JOB_ID"):
            step = env.get("SLURM_STEP_ID", "") if name == "SLURM_JOB_ID" else ""
            return f"job-{env[name]}" + (f".{step}" if step else "")
    elastic = env.get("TORCHELASTIC_RUN_ID", "")
    return f"torchrun-{elastic}" if elastic and elastic != "none" else ""


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
