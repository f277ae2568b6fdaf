"""Kernel windows: a few steps now and then are recorded with torch's own profiler and reduced to an account of theirs.

The training thread only starts and stops the profiler, at step ends; the trace is written by a thread and reduced by a
process of its own. What recording costs is booked to `effprof`, and the steps that it slowed are marked `profiled`.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns as now
from typing import Any

import msgspec

from effprof.measure.clock import EFFPROF, PhaseClock
from effprof.measure.session import Session
from effprof.measure.window_reduction import WindowFacts, WindowSummary
from effprof.runlog.schema import PHASES, Kernels

STEPS = 3
# The first steps allocate, compile and tune: a window over them would stand for nothing that follows.
WARM_UP_STEPS = 20
REQUEST_FILE = "profile"  # touching RUN/profile asks every rank for a window
REDUCE_LIMIT_S = 300.0
_NEVER = 1 << 62


class KernelWindow:
    """Opens windows when they are due, by schedule or on demand.

    `on_step_end` belongs to the training thread, `poll` and `take_late` to the writer's.

    Args:
        session: whose log takes the windows; raw traces go beside it where they are kept.
        clock: its phases are followed while a window is open.
        every: True for one window after the warm-up, N for one every N steps, False for none but those asked for.
        keep_trace: whether the raw trace is kept.
    """

    def __init__(self, session: Session, clock: PhaseClock, *, every: bool | int, keep_trace: bool) -> None:
        self._session = session
        self._clock = clock
        self._rank = session.placement.rank
        self._device_type = session.device.type
        self._every = 0 if isinstance(every, bool) else every
        self._keep_trace = keep_trace
        self._due = WARM_UP_STEPS if every else _NEVER
        self._asked = ""
        self._request_ns = self._request_time()
        self._open: _Open | None = None
        self._worker: threading.Thread | None = None
        self._marked: deque[tuple[int, dict[str, int]]] = deque()
        self._is_off = False
        self._is_writing = False
        self._handler: Any = None
        self._listen()

    def on_step_end(self, sequence: int, step: int) -> None:
        """Called after step number `sequence` of this process, the framework's `step`, has been closed."""
        if self._open is None and sequence + 1 < self._due and not self._asked:
            if self._is_writing:
                self._mark(sequence + 1)  # writing the trace takes a core, and the interpreter now and then
            return
        if self._is_off:
            return
        outer = self._clock.phase
        self._clock.switch(EFFPROF)
        try:
            self._advance(sequence, step)
        except Exception as error:
            self._give_up(f"kernel windows failed and are off ({type(error).__name__}: {error})")
        self._clock.switch(outer)

    def take_late(self) -> list[tuple[int, dict[str, int]]]:
        """Marks for the rows of profiled steps, for the recorder."""
        marked = []
        while self._marked:
            marked.append(self._marked.popleft())
        return marked

    def poll(self) -> None:
        """Look for a request in the run's directory; about once a second."""
        changed_ns = self._request_time()
        if changed_ns > self._request_ns:
            self._request_ns = changed_ns
            self._asked = "file"

    def close(self) -> None:
        """Stop listening, drop a window that is open, wait for one that is being reduced."""
        handler, self._handler = self._handler, None
        if handler is not None:
            with contextlib.suppress(ValueError, TypeError):
                if signal.getsignal(signal.SIGUSR2) is handler:
                    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        window, self._open = self._open, None
        if window is not None:
            with contextlib.suppress(Exception):
                window.stop(self._clock)
            self._session.warn("kernel_window_cut", "training ended inside a kernel window, which is left out")
        elif self._due == WARM_UP_STEPS and not self._is_off:
            self._session.warn(
                "kernel_window_missed",
                f"training ended before the kernel window, which opens after {WARM_UP_STEPS} steps of warm-up",
            )
        if self._worker is not None:
            self._worker.join(REDUCE_LIMIT_S)

    # Inside.

    def _listen(self) -> None:
        """SIGUSR2 asks for a window, where nobody else has a use for it and this thread may say so."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR2"):
            return
        if signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL:
            return

        def ask(*_: Any) -> None:
            self._asked = "signal"

        signal.signal(signal.SIGUSR2, ask)
        self._handler = ask

    def _request_time(self) -> int:
        try:
            return os.stat(self._session.run_dir / REQUEST_FILE).st_mtime_ns
        except OSError:
            return 0

    def _advance(self, sequence: int, step: int) -> None:
        window = self._open
        if window is not None:
            window.end_step(step)
            if window.steps_left:
                self._mark(sequence + 1)
                window.begin_step(step + 1)
                return
            self._open = None
            window.stop(self._clock)
            self._is_writing = True
            self._mark(sequence + 1)
            self._worker = threading.Thread(
                target=self._finish, args=(window,), name="effprof-kernel-window", daemon=True
            )
            self._worker.start()
            return
        if self._worker is not None and self._worker.is_alive():
            return  # asked for again before the last one is done: it opens when that is
        trigger = self._asked or "schedule"
        self._asked = ""
        self._due = sequence + 1 + self._every if self._every else _NEVER
        other = other_profiler()
        if other:
            self._session.warn(
                "kernel_window_skipped", f"no kernel window: {other}, and torch has only one profiler at a time"
            )
            return
        self._open = _Open(self._device_type, trigger, step)
        self._open.start(self._clock)
        self._mark(sequence + 1)
        self._open.begin_step(step + 1)

    def _mark(self, sequence: int) -> None:
        self._session.recorder.expect(sequence)
        self._marked.append((sequence, {"profiled": 1}))

    def _give_up(self, message: str) -> None:
        self._is_off, self._due, self._asked = True, _NEVER, ""
        window, self._open = self._open, None
        if window is not None:
            with contextlib.suppress(Exception):
                window.stop(self._clock)
        self._session.warn("kernel_window_failed", message)

    def _finish(self, window: _Open) -> None:
        """Write, reduce and record a window; in a thread of its own."""
        try:
            self._session.recorder.add(self._reduce(window))
        except Exception as error:
            self._session.warn("kernel_window_failed", f"a kernel window is lost ({type(error).__name__}: {error})")
        finally:
            self._is_writing = False

    def _reduce(self, window: _Open) -> Kernels:
        with tempfile.TemporaryDirectory(prefix="effprof-") as folder:
            path = os.path.join(folder, f"rank-{self._rank:05d}.json")
            began = now()
            window.profiler.export_chrome_trace(path)
            window.profiler = None  # its events take memory
            self._is_writing = False
            exported = now()
            summary = _reduce_in_process(path, window.facts)
            window.cost["export_s"] = (exported - began) / 1e9
            window.cost["reduce_s"] = (now() - exported) / 1e9
            kept = ""
            if self._keep_trace:
                kept = f"trace-rank-{self._rank:05d}-step-{window.first_step}.json.gz"
                with (
                    open(path, "rb") as source,
                    gzip.open(self._session.directory / kept, "wb", compresslevel=5) as target,
                ):
                    shutil.copyfileobj(source, target)
        return Kernels(
            monotonic_ns=window.facts.marks[0][1],
            first_step=window.first_step,
            steps=STEPS,
            trigger=window.trigger,
            basis="device" if window.facts.has_device else "operators",
            window_s=summary.window_s,
            lines=summary.lines,
            by_phase=summary.by_phase,
            families=summary.families,
            operators=summary.operators,
            account=summary.account,
            cost=window.cost,
            trace=kept,
            problems=summary.problems,
        )


class _Open:
    """A window that is being recorded."""

    def __init__(self, device_type: str, trigger: str, first_step: int) -> None:
        self.trigger = trigger
        self.first_step = first_step
        self.steps_left = STEPS
        self.facts = WindowFacts(marks=[], steps={}, has_device=device_type != "cpu")
        self.cost: dict[str, float] = {}
        self.profiler: Any = None
        self._device_type = device_type
        self._annotation: Any = None
        self._outer: Callable[[int], None] | None = None
        self._is_following = False

    def start(self, clock: PhaseClock) -> None:
        """Start the profiler and follow the clock's phases."""
        import torch

        began = now()
        library: Any = torch.profiler
        activities = [library.ProfilerActivity.CPU]
        name = {"cuda": "CUDA", "xpu": "XPU", "mtia": "MTIA"}.get(self._device_type, "PrivateUse1")
        if self.facts.has_device and hasattr(library.ProfilerActivity, name):
            activities.append(getattr(library.ProfilerActivity, name))
        # not the class with a schedule: that one counts steps for the whole process, as a user's own profiler does
        self.profiler = library._KinetoProfile(activities=activities, record_shapes=True)
        self.profiler.start()
        self.cost["start_s"] = (now() - began) / 1e9
        self._outer, marks = clock.listener, self.facts.marks
        outer = self._outer

        def follow(phase: int) -> None:
            marks.append((PHASES[phase], now()))
            if outer is not None:
                outer(phase)

        clock.listen(follow)
        self._is_following = True
        marks.append((PHASES[clock.phase], now()))

    def begin_step(self, number: int) -> None:
        """A step begins: it is annotated as torch's profiler itself would."""
        import torch

        self._annotation = torch.autograd.profiler.record_function(f"ProfilerStep#{number}")
        self.facts.steps[number] = now()
        self._annotation.__enter__()

    def end_step(self, number: int) -> None:
        """The step has ended."""
        annotation, self._annotation = self._annotation, None
        if annotation is not None:
            annotation.__exit__(None, None, None)
        self.steps_left -= 1

    def stop(self, clock: PhaseClock) -> None:
        """Stop the profiler; its events are still in memory."""
        began = now()
        if self._is_following:
            clock.listen(self._outer)
            self._is_following = False
            self.facts.marks.append((PHASES[EFFPROF], began))
        if self._annotation is not None:
            self.end_step(0)
        self.profiler.stop()
        self.cost["stop_s"] = (now() - began) / 1e9


def other_profiler() -> str:
    """Who else profiles, or is about to, in words; empty where nobody does."""
    import torch

    autograd: Any = torch.autograd
    if autograd._profiler_enabled():
        return "a profiler of yours is running"
    counts = getattr(getattr(autograd.profiler, "KinetoStepTracker", None), "_step_dict", {})
    return "a torch.profiler.profile of yours exists" if "ProfilerStep" in counts else ""


def _reduce_in_process(path: str, facts: WindowFacts) -> WindowSummary:
    """Run the reduction as a process of its own, with little priority.

    Raises:
        RuntimeError: it failed; the message is its own.
    """
    command = [sys.executable, "-m", "effprof.measure.window_reduction", path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command,
        input=msgspec.json.encode(facts),
        capture_output=True,
        timeout=REDUCE_LIMIT_S,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace").strip()[-500:] or f"status {done.returncode}")
    return msgspec.json.decode(done.stdout, type=WindowSummary)
