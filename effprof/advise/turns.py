"""Two trials that take turns of a second, so that what slows the machine for a while slows both sides alike.

Trials one after the other are compared across ten seconds and more. On a processor that neighbours share, speed drifts
by some tenths within that: more than most changes bring. Here both processes live at once, and only one of them steps;
a trial hands over between steps (`effprof.callbacks.lightning_turns`). It needs the memory of both, so that trials on
accelerators and of several ranks, which have other reasons to be steady, run alone.

The two speak through named pipes in the trial's directory: launchers between them close other descriptors.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from effprof.advise.segments import SegmentResult
from effprof.advise.trial import Trial, fresh_directory, run_trial
from effprof.errors import EffprofError
from effprof.hardware.host import free_memory

TURN_S = 1.0
TO_TRIAL, FROM_TRIAL = "turn.in", "turn.out"
READY, ALONE, DONE = b"r", b"a", b"d"  # the trial says: at its first step's end; can't take turns; a turn is over
GO, FREE = b"g", b"f"  # and is told: your turn; no more turns, go on to the end
SPARE = 1.25  # free memory that the second process needs, of what the first one holds

Side = tuple[Mapping[str, Any], Path]  # changes, and the directory of the trial


class CommandBlocks:
    """Blocks of one trial of each side: in turns where that can be, else one after the other.

    Args:
        command: the training as it is started by hand.
        settings: side → changes.
        folder: where the trials' runs go.
        seconds: of stepping, in each trial.
        ends: monotonic time by which trials that hang are killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        settings: Mapping[str, Mapping[str, Any]],
        folder: Path,
        *,
        seconds: float,
        ends: float,
    ) -> None:
        self._command, self._settings, self._folder = list(command), settings, folder
        self._seconds, self._ends = seconds, ends
        self._can_take_turns: bool | None = None  # not known before the first block

    def __call__(self, sides: Sequence[str]) -> Iterator[tuple[str, SegmentResult]]:
        """The sides' segments, in the order given.

        Raises:
            EffprofError: the command can't be started, or ended without reaching EfficiencyCallback.
        """
        found: list[SegmentResult] = []
        if self._can_take_turns is not False:
            first, second = ((self._settings[side], fresh_directory(self._folder, side)) for side in sides)
            with contextlib.suppress(EffprofError):  # tried again alone
                found = run_in_turns(
                    self._command,
                    first,
                    second,
                    seconds=self._seconds,
                    timeout_s=2 * self._left_s,
                    at_once=self._can_take_turns is True,
                )
            self._can_take_turns = len(found) == len(sides) and all(each.outcome == "ok" for each in found)
            if len(found) == len(sides) and not self._can_take_turns:
                found = []  # maybe the two were in each other's way: memory, a port, a file
        yield from zip(sides, found, strict=False)
        for side in sides[len(found) :]:
            place = fresh_directory(self._folder, side)
            settings = self._settings[side]
            yield side, run_trial(self._command, settings, place, seconds=self._seconds, timeout_s=self._left_s)

    @property
    def _left_s(self) -> float:
        return max(60.0, self._ends - monotonic())  # the start of a process alone takes a while on a busy machine


def run_in_turns(
    command: Sequence[str], first: Side, second: Side, *, seconds: float, timeout_s: float, at_once: bool = False
) -> list[SegmentResult]:
    """Runs a command with two sets of changes in turns.

    Args:
        command: the training as it is started by hand.
        first: the changes of one trial, and its directory, which must not hold a run yet.
        second: the same of the other one.
        seconds: of stepping, in each.
        timeout_s: of all of it.
        at_once: whether the second starts with the first one, as both are known to find room; else once it is seen.

    Returns:
        Both segments; the first one's alone, and the second not begun, where they can't take turns. The wall time of
        two that did is half of what both took.

    Raises:
        EffprofError: the command can't be started, or ended without reaching EfficiencyCallback.
    """
    began = monotonic()
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(_Partner(command, first, seconds, began + timeout_s))
        if not at_once and (own.hear() != READY or not _has_room(own)):
            own.tell(FREE)
            own.wait()
            return [own.result()]
        other = stack.enter_context(_Partner(command, second, seconds, began + timeout_s))
        if at_once:
            own.hear()
        other.hear()
        _alternate(own, other)
        results = [own.result(), other.result()]
    half_s = (monotonic() - began) / 2
    return [replace(each, wall_s=half_s) for each in results]


def _alternate(stepping: _Partner, waiting: _Partner) -> None:
    """Until both have ended. Whoever has is waited for before the other steps: ending takes time on the processor."""
    if waiting.said != READY:  # it steps already, or has ended
        stepping, waiting = waiting, stepping
    while stepping.said in (READY, DONE):
        stepping.tell(GO)
        stepping.hear()
        stepping, waiting = waiting, stepping
    stepping.wait()
    waiting.tell(FREE)
    waiting.wait()


class _Partner:
    """One of the two, with its pipes."""

    def __init__(self, command: Sequence[str], side: Side, seconds: float, ends: float) -> None:
        changes, folder = side
        self._ends = ends
        self.said = b""
        self._paths = folder / TO_TRIAL, folder / FROM_TRIAL
        folder.mkdir(parents=True, exist_ok=True)
        for path in self._paths:
            os.mkfifo(path)
        # for both directions, so that opening waits for nobody and nobody's end is an error
        self._to, self._from = (os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in self._paths)
        self._trial = Trial(command, changes, folder, seconds=seconds, takes_turns=True)

    def __enter__(self) -> _Partner:
        return self

    def __exit__(self, *_: object) -> None:
        self._trial.end()
        for end in (self._to, self._from):
            os.close(end)
        for path in self._paths:
            path.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """Of the command."""
        return self._trial.process.pid

    def hear(self) -> bytes:
        """What it says next; nothing once it has ended or the time is up."""
        self.said = b""
        while not self.said and monotonic() < self._ends:
            is_over = self._trial.process.poll() is not None
            if select.select([self._from], [], [], 0 if is_over else 0.1)[0]:
                self.said = os.read(self._from, 1)
            elif is_over:
                break
        return self.said

    def tell(self, word: bytes) -> None:
        """GO or FREE."""
        os.write(self._to, word)

    def wait(self) -> None:
        """Until it has ended, or the time is up."""
        self._trial.wait(max(0.0, self._ends - monotonic()))

    def result(self) -> SegmentResult:
        """What it gave."""
        return self._trial.result(max(0.0, self._ends - monotonic()))


def _has_room(partner: _Partner) -> bool:
    """Whether a second process like it fits into memory."""
    import psutil

    held = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(partner.pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                held += each.memory_info().rss
    return free_memory() > SPARE * held
