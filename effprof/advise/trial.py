"""One trial: the user's own training command, run for a few seconds with some settings changed from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import numpy as np

from effprof.advise.segments import Array, Outcome, SegmentResult
from effprof.analysis.analyze import Examined, examine
from effprof.analysis.steps import column
from effprof.errors import EffprofError
from effprof.runlog.layout import RUN_FILE
from effprof.runlog.reader import Run, open_run

VARIABLE = "EFFPROF_TRIAL"
OUTPUT = "output.txt"
TAIL_BYTES = 64_000  # of the output that is looked at: a traceback is at the end
OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|MemoryError|can't allocate memory|cannot allocate memory|std::bad_alloc", re.I
)
NO_RUN = "no effprof run appeared: is EfficiencyCallback in the Trainer's callbacks?"


def run_trial(
    command: Sequence[str],
    changes: Mapping[str, Any],
    run_dir: Path,
    *,
    seconds: float,
    steps: int | None = None,
    timeout_s: float = 600.0,
    is_measuring: bool = False,
    rehearse: Sequence[Mapping[str, Any]] = (),
) -> SegmentResult:
    """Runs a command with changes, and reads the run it wrote.

    Args:
        command: the training as it is started by hand.
        changes: see `effprof.advise.changes`.
        run_dir: where the trial's run and its output go; must not hold a run yet.
        seconds: of stepping, after which the training stops.
        steps: or this many, whichever comes first.
        timeout_s: of the whole process; it is killed after them.
        is_measuring: whether everything that recommendations rest on is recorded too (FLOPs, kernel window, telemetry).
        rehearse: sets of changes that the process times once its steps are done (see `effprof.advise.rehearsal`).

    Returns:
        The segment; running out of memory, failing and not ending are outcomes of it.

    Raises:
        EffprofError: the command can't be started, or ended without reaching EfficiencyCallback.
        KeyboardInterrupt: passed on once the trial's processes are gone.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    began = monotonic()
    request = {
        "changes": dict(changes),
        "run_dir": str(run_dir.resolve()),
        "seconds": seconds,
        "steps": steps,
        "is_measuring": is_measuring,
        "rehearse": [dict(each) for each in rehearse],
    }
    wanted = {name: str(value) for name, value in dict(changes.get("environment", {})).items()}
    environment = {**os.environ, **wanted, VARIABLE: msgspec.json.encode(request).decode()}
    code = _run(command, environment, run_dir / OUTPUT, timeout_s)
    wall_s = monotonic() - began
    text = _tail(run_dir / OUTPUT)
    outcome, reason = _outcome(code, text, timeout_s)
    if outcome != "ok":
        if outcome == "failed" and not (run_dir / RUN_FILE).exists():
            raise EffprofError(f"{command[0]}: {reason}", f"{NO_RUN} Its output is in {run_dir / OUTPUT}")
        return _without_steps(outcome, reason, run_dir, wall_s)
    if not (run_dir / RUN_FILE).exists():
        raise EffprofError(NO_RUN, f"the command ended with exit code 0; its output is in {run_dir / OUTPUT}")
    return read_segment(open_run(str(run_dir)), wall_s)


def read_segment(run: Run, wall_s: float = 0.0) -> SegmentResult:
    """The segment that a run holds: its steady steps' counts and seconds, and all its losses."""
    examined = examine(run)
    steps = examined.steps
    seconds = steps.steady(steps.seconds)
    tokens, samples = (steps.steady(steps.counts[name]) for name in ("tokens", "samples"))
    has_tokens = bool(len(tokens)) and bool(np.isfinite(tokens).all()) and float(tokens.sum()) > 0
    facts = run.record.config.get("trial") or {}
    segment = SegmentResult(
        counts=tokens if has_tokens else samples,
        seconds=seconds,
        losses=_losses(run, examined),
        metric="tokens_per_s" if has_tokens else "samples_per_s",
        applied=dict(facts.get("applied", {})),
        refused=dict(facts.get("refused", {})),
        wall_s=wall_s,
        run=run.path,
    )
    if np.isfinite(segment.rate) and segment.rate > 0:
        return segment
    reason = "no step after the warm-up had counted tokens or samples"
    return _without_steps("failed", reason, Path(run.path), wall_s)


def _losses(run: Run, examined: Examined) -> Array:
    """Loss of every step, mean over the ranks that recorded one; shape (steps,), empty without any."""
    rows = examined.steps.rank_rows[-1]
    series = [column(rank, "loss")[rows[rank.header.rank]] for rank in run.attempts[-1].ranks if rank.steps]
    known = [losses for losses in series if len(losses) and not np.isnan(losses).all()]
    return np.mean(known, axis=0) if known else np.zeros(0)


def _run(command: Sequence[str], environment: Mapping[str, str], output: Path, timeout_s: float) -> int | None:
    """Exit code of the command (negative: the signal), None where it was killed for taking too long."""
    with output.open("wb") as file:
        try:
            process = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise EffprofError(f"{command[0]}: {error.strerror or error}", "give the command after --") from None
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the trial's process and everything it started, such as data loader workers and other ranks."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(code: int | None, text: str, timeout_s: float) -> tuple[Outcome, str]:
    if code is None:
        return "timeout", f"not done after {timeout_s:.0f} s"
    if code == 0:
        return "ok", ""
    found = [line.strip() for line in text.splitlines() if OUT_OF_MEMORY.search(line)]
    if found:
        return "out_of_memory", found[-1][:300]
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "out_of_memory", "killed by signal 9, which is how the system ends a process that has no memory left"
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return "failed", f"exit code {code}: {last[:300]}" if last else f"exit code {code}"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")


def _without_steps(outcome: Outcome, reason: str, run_dir: Path, wall_s: float) -> SegmentResult:
    empty = np.zeros(0)
    return SegmentResult(empty, empty, outcome=outcome, reason=reason, wall_s=wall_s, run=str(run_dir))
