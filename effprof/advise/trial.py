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
from numpy.typing import NDArray

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
    timeout_s: float = 600.0,
    **more: Any,
) -> SegmentResult:
    """Runs a command with changes, and reads the run it wrote.

    Args:
        command: the training as it is started by hand.
        changes: see `effprof.advise.changes`.
        run_dir: where the trial's run and its output go; must not hold a run yet.
        seconds: of stepping, after which the training stops.
        timeout_s: of the whole process; it is killed after them.
        more: see `Trial`.

    Returns:
        The segment; running out of memory, failing and not ending are outcomes of it.

    Raises:
        EffprofError: the command can't be started, or ended without reaching EfficiencyCallback.
        KeyboardInterrupt: passed on once the trial's processes are gone.
    """
    with Trial(command, changes, run_dir, seconds=seconds, **more) as trial:
        return trial.result(timeout_s)


class Trial:
    """A trial's process, from its start to what it gave; leaving the context ends it with everything it started.

    Args:
        steps: the training stops after this many too, whichever comes first.
        is_measuring: whether everything that recommendations rest on is recorded too (FLOPs, kernel window, telemetry).
        rehearse: sets of changes that the process times once its steps are done (see `effprof.advise.rehearsal`).
        rehearse_s: seconds for each of them.
        takes_turns: whether it waits for its turn between steps (see `effprof.advise.turns`).
    """

    def __init__(
        self,
        command: Sequence[str],
        changes: Mapping[str, Any],
        run_dir: Path,
        *,
        seconds: float,
        steps: int | None = None,
        is_measuring: bool = False,
        rehearse: Sequence[Mapping[str, Any]] = (),
        rehearse_s: float = 5.0,
        takes_turns: bool = False,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self._command = list(command)
        self._began, self._ended = monotonic(), 0.0
        self._is_gone = False
        request = {
            "changes": dict(changes),
            "run_dir": str(run_dir.resolve()),
            "seconds": seconds,
            "steps": steps,
            "is_measuring": is_measuring,
            "rehearse": [dict(each) for each in rehearse],
            "rehearse_s": rehearse_s,
            "takes_turns": takes_turns,
        }
        wanted = {name: str(value) for name, value in dict(changes.get("environment", {})).items()}
        with (run_dir / OUTPUT).open("wb") as file:
            try:
                self.process = subprocess.Popen(
                    self._command,
                    env={**os.environ, **wanted, VARIABLE: msgspec.json.encode(request).decode()},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                what = f"{command[0]}: {error.strerror or error}"
                raise EffprofError(what, "give the command after --") from None

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill it and everything it started, such as data loader workers and other ranks."""
        if self._is_gone:
            return
        self._is_gone = True  # its number may become another process's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, timeout_s: float) -> None:
        """Until it has ended by itself, or for so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
            self._ended = monotonic()

    def result(self, timeout_s: float) -> SegmentResult:
        """What it gave, once it has ended; it is killed where it has not after `timeout_s`."""
        self.wait(timeout_s)
        code = self.process.returncode
        self.end()
        wall_s = (self._ended or monotonic()) - self._began
        outcome, reason = _outcome(code, _tail(self.run_dir / OUTPUT), timeout_s)
        has_run = (self.run_dir / RUN_FILE).exists()
        if outcome != "ok":
            if outcome == "failed" and not has_run:
                what = f"{NO_RUN} Its output is in {self.run_dir / OUTPUT}"
                raise EffprofError(f"{self._command[0]}: {reason}", what)
            return _without_steps(outcome, reason, self.run_dir, wall_s)
        if not has_run:
            raise EffprofError(NO_RUN, f"the command ended with exit code 0; its output is in {self.run_dir / OUTPUT}")
        return read_segment(open_run(str(self.run_dir)), wall_s)


def fresh_directory(folder: Path, stem: str) -> Path:
    """A new directory `stem-N` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        place = folder / f"{stem}-{number}"
        try:
            place.mkdir()
        except FileExistsError:
            number += 1
            continue
        return place


def read_segment(run: Run, wall_s: float = 0.0) -> SegmentResult:
    """The segment that a run holds: its steady steps' counts and seconds, and all its losses."""
    examined = examine(run)
    steps = examined.steps
    seconds = steps.steady(steps.seconds)
    tokens, samples = (steps.steady(steps.counts[name]) for name in ("tokens", "samples"))
    has_tokens = bool(len(tokens)) and bool(np.isfinite(tokens).all()) and float(tokens.sum()) > 0
    facts = run.record.config.get("trial") or {}
    turns = _turns(facts, steps.step[steps.is_steady])
    kept = _is_usual(turns) if len(turns) else slice(None)
    segment = SegmentResult(
        counts=(tokens if has_tokens else samples)[kept],
        seconds=seconds[kept],
        losses=_losses(run, examined),
        metric="tokens_per_s" if has_tokens else "samples_per_s",
        applied=dict(facts.get("applied", {})),
        refused=dict(facts.get("refused", {})),
        wall_s=wall_s,
        run=run.path,
        turns=turns[kept],
    )
    if np.isfinite(segment.rate) and segment.rate > 0:
        return segment
    reason = "no step after the warm-up had counted tokens or samples"
    return _without_steps("failed", reason, Path(run.path), wall_s)


def _turns(facts: Mapping[str, Any], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which turn each step was made in; empty for a trial that took none."""
    ends = np.asarray(facts.get("turns", ()), np.int64)
    return np.searchsorted(ends, steps) if len(ends) else ends


def _is_usual(turns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """False for the first step of a turn that has more: what it needs from caches went to the other side."""
    is_first = np.diff(turns, prepend=-1) > 0
    is_only = np.diff(turns, append=turns[-1] + 1) > 0
    usual: NDArray[np.bool_] = ~is_first | is_only
    return usual


def _losses(run: Run, examined: Examined) -> Array:
    """Loss of every step, mean over the ranks that recorded one; shape (steps,), empty without any."""
    rows = examined.steps.rank_rows[-1]
    series = [column(rank, "loss")[rows[rank.header.rank]] for rank in run.attempts[-1].ranks if rank.steps]
    known = [losses for losses in series if len(losses) and not np.isnan(losses).all()]
    return np.mean(known, axis=0) if known else np.zeros(0)


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
