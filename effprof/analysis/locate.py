"""Which run a path means: people give the run, a file in it, or the directory that holds their runs."""

from __future__ import annotations

import os
import re

from effprof.runlog.reader import find_runs

_RUN_FILE = "run.json"
_ATTEMPT = re.compile(r"attempt-\d+")


def locate_run(path: str) -> tuple[str, str]:
    """(run, note): the run that `path` means, and what to tell about the choice (empty where there was none).

    A run directory or its `run.json` is itself; an attempt directory is its run; a directory that holds runs (such
    as `effprof_runs`) is its newest run, by the latest change to a file in it. Anything else is returned as it is.
    """
    if not os.path.isdir(path):
        return path, ""
    path = path.rstrip("/") or "/"
    parent = os.path.dirname(os.path.abspath(path))
    if _ATTEMPT.fullmatch(os.path.basename(path)) and os.path.exists(os.path.join(parent, _RUN_FILE)):
        return parent, ""
    runs = _runs_below(path)
    if not runs or runs == [path]:
        return path, ""
    newest = max(runs, key=lambda run: (_changed_s(run), run))
    if len(runs) == 1:
        return newest, ""
    return newest, f"{path} holds {len(runs)} runs; this is the newest, {os.path.basename(newest)}"


def _runs_below(path: str) -> list[str]:
    runs = find_runs(path)
    nested = os.path.join(path, "effprof_runs")
    # given the directory that training was started in, the runs are one level further down
    return runs if runs or not os.path.isdir(nested) else find_runs(nested)


def _changed_s(run: str) -> float:
    """Unix time of the latest change to a log of the run."""
    times = [os.stat(run).st_mtime]
    for folder, _, files in os.walk(run):
        times += [os.stat(os.path.join(folder, name)).st_mtime for name in files if name.endswith(".ndjson")]
    return max(times)
