"""The sampler process of a node: reads every probe once a period and appends the readings to the node's log.

Started by `effprof.measure.telemetry`, one per node, so that vendor libraries never run in the training process. It
imports no torch, takes no signal meant for the training, and ends when the training process does. It tells its parent
over a pipe which probe it is about to read, so that one that hangs can be named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

from effprof.hardware.probes.base import Meaning, Probe, ProbeDevice, Reading, available_probes
from effprof.hardware.probes.cpu import CpuProbe
from effprof.runlog.layout import node_file
from effprof.runlog.schema import End, Header, Line, Telemetry
from effprof.runlog.schema import Probe as ProbeLine

ROTATE_BYTES = 16 << 20
# The parent is looked at this often where the pipe does not tell its end (a worker that it forked holds it open).
PARENT_CHECK_S = 0.5
_PR_SET_PDEATHSIG = 1

# What the parent reads from the status pipe, one word a line.
READING = "reading"
SAMPLED = "sampled"
FAILED = "failed"
DISCOVERY = "discovery"  # in place of a probe's name, while the probes are looked for


class SelfProbe:
    """What the sampler itself knows: the node's run queue, and what a sample costs."""

    name = "sampler"
    vendor = "host"
    reason = ""

    def __init__(self) -> None:
        self.sample_s: float | None = None

    def devices(self) -> list[ProbeDevice]:
        return []

    def describe(self) -> dict[str, dict[str, str]]:
        return {
            "load_1m": Meaning("processes", "host", "gauge", "mean number of runnable processes, 1 minute").as_dict(),
            "sample_s": Meaning("s", "host", "gauge", "what the previous sample of all probes took").as_dict(),
        }

    def read(self) -> list[tuple[str, Reading]]:
        load: float | None = None
        with contextlib.suppress(OSError):
            load = os.getloadavg()[0]
        return [
            ("host", Reading("load_1m", load, "processes", "host", "gauge", "" if load is not None else "error")),
            (
                "host",
                Reading("sample_s", self.sample_s, "s", "host", "gauge", "" if self.sample_s else "not_sampled_yet"),
            ),
        ]

    def close(self) -> None:
        return None


class NodeLogFile:
    """Appends lines to the node's log, each with one `write(2)`; rotates it by size."""

    def __init__(self, directory: Path, header: Header, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.path = directory / node_file(header.node)
        self._header = header
        self._rotate_bytes = rotate_bytes
        self._encoder = msgspec.json.Encoder()
        self._opening: list[Line] = []
        self._open()

    def write(self, *lines: Line) -> None:
        """Append `lines`; a new file opens with the header and the probes' descriptions."""
        self._append(lines)
        if os.fstat(self._descriptor).st_size > self._rotate_bytes:
            os.close(self._descriptor)
            os.replace(self.path, self.path.with_suffix(f".{self._closed_segments():03d}.ndjson"))
            self._open()
            self._append(self._opening)

    def describe(self, lines: list[Line]) -> None:
        """Append lines that every later segment has to repeat."""
        self._opening = lines
        self._append(lines)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # a sampler that was killed in the middle of a line
        self._append([msgspec.structs.replace(self._header, segment=self._closed_segments())])

    def _append(self, lines: tuple[Line, ...] | list[Line]) -> None:
        data = b"".join(self._encoder.encode(line) + b"\n" for line in lines)
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _closed_segments(self) -> int:
        return len(list(self.path.parent.glob(f"{self.path.stem}.*.ndjson")))


class Sampler:
    """Reads the probes in turn; knows which reasons the log already holds."""

    def __init__(self, probes: list[Probe], status: Status) -> None:
        self._own = SelfProbe()
        self._probes: list[Probe] = [*probes, self._own]
        self._status = status
        self._known_missing: dict[str, str] = {}

    def describe(self) -> Iterator[ProbeLine]:
        """One line per probe: its devices, and what its readings mean."""
        for probe in self._probes:
            self._status.tell(f"{READING} {probe.name}")
            try:
                devices = [device.as_dict() for device in probe.devices()]
                readings = {name: dict(meaning) for name, meaning in probe.describe().items()}
            except Exception as error:
                devices, readings = [], {"": {"reason": f"{type(error).__name__}: {error}"}}
            if probe.reason:
                readings = {**readings, "": {"reason": probe.reason}}
            yield ProbeLine(probe=probe.name, devices=devices, readings=readings)

    def sample(self) -> Telemetry:
        """One reading of everything. A reason for a missing value is given when it is new."""
        line = Telemetry(monotonic_ns=time.perf_counter_ns(), values={})
        for probe in self._probes:
            self._status.tell(f"{READING} {probe.name}")
            try:
                readings = probe.read()
            except Exception as error:  # a third party's probe; its promise not to raise is not ours to trust
                readings = []
                self._miss(line, probe.name, f"{type(error).__name__}: {error}")
            for key, reading in readings:
                name = f"{key}.{reading.name}"
                value = line.values[name] = finite(reading.value)
                if value is None:
                    self._miss(line, name, reading.reason or ("error" if reading.value is None else "non_finite"))
                else:
                    self._known_missing.pop(name, None)
        self._own.sample_s = (time.perf_counter_ns() - line.monotonic_ns) / 1e9
        self._status.tell(SAMPLED)
        return line

    def close(self) -> None:
        for probe in self._probes:
            with contextlib.suppress(Exception):
                probe.close()

    def _miss(self, line: Telemetry, name: str, reason: str) -> None:
        if self._known_missing.get(name) != reason:
            self._known_missing[name] = reason
            line.missing[name] = reason


class Status:
    """The pipe to the parent; never blocks and never fails, a parent that does not listen misses words."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        if descriptor >= 0:
            os.set_blocking(descriptor, False)

    def tell(self, word: str) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, word.encode() + b"\n")


class Parent:
    """The training process: told to be gone by the pipe, by its death signal, or by a look at the process table."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_direct = os.getppid() == pid
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.Error):
            self._process = psutil.Process(pid)

    def is_gone(self) -> bool:
        if self._is_direct:
            return os.getppid() != self._pid
        try:
            return (
                self._process is None
                or not self._process.is_running()
                or self._process.status() == psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return True

    def wait(self, seconds: float) -> str:
        """Sleep; "stop" or "gone" as soon as the parent says so or ends, else "" after `seconds`."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            with contextlib.suppress(InterruptedError):
                if select.select([0], [], [], max(0.0, min(left, PARENT_CHECK_S)))[0]:
                    return "stop" if os.read(0, 64).startswith(b"stop") else "gone"
            if self.is_gone():
                return "gone"
            if left <= PARENT_CHECK_S:
                return ""


def finite(value: float | int | None) -> float | int | None:
    """The value, or None where JSON has no number for it."""
    return None if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))) else value


def run(arguments: argparse.Namespace, parent: Parent, status: Status) -> None:
    """Sample until the parent stops it or ends."""
    header = Header(
        run_id=arguments.run_id,
        role="node",
        rank=0,
        node=arguments.node,
        attempt=arguments.attempt,
        host=socket.gethostname(),
        pid=os.getpid(),
        monotonic_ns=time.perf_counter_ns(),
        wall_s=time.time(),
        process_start_s=psutil.Process().create_time(),
    )
    log = NodeLogFile(Path(arguments.directory), header)
    status.tell(f"{READING} {DISCOVERY}")
    if DISCOVERY in arguments.without:
        probes: list[Probe] = [CpuProbe([arguments.pid])]
    else:
        probes = [probe for probe in available_probes([arguments.pid]) if probe.name not in arguments.without]
    sampler = Sampler(probes, status)
    log.describe(list(sampler.describe()))
    due = time.monotonic()
    while True:
        log.write(sampler.sample())
        # samples that a slow probe made late are left out, not caught up with
        due = max(due + arguments.period, time.monotonic())
        word = parent.wait(due - time.monotonic())
        if word == "stop":
            log.write(sampler.sample(), End(status="completed", monotonic_ns=time.perf_counter_ns()))
        if word:
            break
    sampler.close()
    log.close()


def _detach_from_training(pid: int) -> None:
    """Take no signal that is meant for the training, and have the kernel tell when the training process dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the death signal comes when the thread that started this process ends, which may be long before its process
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if os.getppid() != pid else None)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    with contextlib.suppress(OSError):
        os.nice(5)


def main(words: list[str] | None = None) -> int:
    """Entry point of `python -m effprof.measure.sampler_process`."""
    parser = argparse.ArgumentParser(description="Samples this node's telemetry; started by effprof itself.")
    parser.add_argument("--directory", required=True, help="the attempt's directory")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--node", type=int, default=0)
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--pid", type=int, required=True, help="the training process")
    parser.add_argument("--period", type=float, default=1.0, help="seconds between samples")
    parser.add_argument("--status", type=int, default=-1, help="descriptor of the pipe to the parent")
    parser.add_argument("--without", action="append", default=[], help="name of a probe to leave out")
    arguments = parser.parse_args(words)
    parent = Parent(arguments.pid)
    _detach_from_training(arguments.pid)
    if parent.is_gone():
        return 0
    status = Status(arguments.status)
    try:
        run(arguments, parent, status)
    except Exception as error:
        status.tell(f"{FAILED} {type(error).__name__}: {error}".replace("\n", " "))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
