"""Opens a run for this process: finds its directory and attempt, writes run.json, starts writer and sampler."""

from __future__ import annotations

import os
import platform
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from time import perf_counter_ns as now
from typing import Any

import msgspec
import psutil

from effprof import __version__
from effprof.hardware.identity import DeviceIdentity
from effprof.measure.clock import EFFPROF, UNATTRIBUTED, PhaseClock, measure_switch_ns
from effprof.measure.facts.environment import environment_facts
from effprof.measure.placement import Placement
from effprof.measure.recorder import LateColumns, Recorder
from effprof.measure.telemetry import Sampler, start_sampler
from effprof.runlog.layout import (
    RUN_FILE,
    RUNS_DIRECTORY,
    attempt_name,
    choose_attempt,
    choose_run_id,
    process_start_s,
)
from effprof.runlog.schema import PHASES, End, Event, Header, Line, Memory, RunRecord, Span
from effprof.runlog.writer import RankWriter, write_run_record

_PACKAGES = ("torch", "pytorch-lightning", "lightning", "transformers", "accelerate", "deepspeed", "numpy")


class Session:
    """One process's part in one attempt of a run, from `open` to `close`.

    Args:
        run_dir: the run's directory, or None for `effprof_runs/<id>` below `root`.
        root: where to put runs.
        own_id: the id that `runlog.layout.prepare_own_id` gave this process.
        placement: which rank this is.
        device: the device that this rank trains on.
        framework, framework_version: what runs the loop.
        late: sources of values that arrive after their step.
        each_second: more lines to write about once a second.
        telemetry: whether this node's first rank starts the sampler.

    Raises:
        EffprofError: several processes and nothing that names the run for all of them.
        OSError: the directory can't be written.
    """

    def __init__(
        self,
        *,
        run_dir: str | os.PathLike[str] | None,
        root: str | os.PathLike[str],
        own_id: str | None,
        placement: Placement,
        device: DeviceIdentity,
        framework: str,
        framework_version: str = "",
        late: tuple[LateColumns, ...] = (),
        each_second: Callable[[], list[Line]] | None = None,
        telemetry: bool = True,
    ) -> None:
        self.placement = placement
        self.device = device
        self._each_second = each_second
        self._closed = False
        started_s = process_start_s()
        self.run_dir, run_id = _choose_directory(run_dir, Path(root), placement, own_id)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        before = _recorded(self.run_dir)  # an earlier attempt's, or nothing
        run_id = before.id if before else run_id
        attempt = choose_attempt(self.run_dir, placement.rank, started_s)
        self.record = RunRecord(
            id=run_id,
            framework=framework,
            framework_version=framework_version,
            created_s=(before.created_s if before else 0.0) or time.time(),
            command=list(sys.orig_argv),
            software=_software() | environment_facts(),
            parallel={"world_size": placement.world_size, "data_parallel_size": placement.data_parallel_size},
            hardware={"name": device.name, "vendor": device.vendor, "type": device.type},
        )
        taken_over_ns = now()
        header = Header(
            run_id=run_id,
            role="rank",
            rank=placement.rank,
            node=placement.node,
            local_rank=placement.local_rank,
            world_size=placement.world_size,
            data_parallel_rank=placement.data_parallel_rank,
            data_parallel_size=placement.data_parallel_size,
            attempt=attempt,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=device_facts(device),
            monotonic_ns=taken_over_ns,
            wall_s=time.time(),
            process_start_s=started_s,
        )
        self.directory = directory = self.run_dir / attempt_name(attempt)
        writer = RankWriter(directory, header)
        self.clock = PhaseClock(taken_over_ns, self._add_span)
        self._process = psutil.Process()
        self._thread_clock = _processor_clock(threading.get_ident())
        self.recorder = Recorder(
            writer,
            self.clock,
            switch_ns=measure_switch_ns(),
            late=late,
            each_second=self._sample,
            on_problem=self._warn_of_log,
        )
        began_ns = taken_over_ns - round((header.wall_s - started_s) * 1e9)
        if began_ns < taken_over_ns:
            # what happened before effprof was asked: imports, process groups, data and model set-up
            self.recorder.add(Span(name="startup", start_ns=max(0, began_ns), end_ns=taken_over_ns))
        self._sampler: Sampler | None = None
        if telemetry and placement.local_rank == 0:
            self._sampler = start_sampler(
                directory, run_id=run_id, node=placement.node, attempt=attempt, pid=os.getpid()
            )
        self.write_record()

    def write_record(self) -> None:
        """Rank 0 writes what is known of the run by now."""
        if self.placement.rank == 0:
            write_run_record(self.run_dir, self.record)

    def warn(self, code: str, message: str, *, aloud: bool = True) -> None:
        """Put a warning on record, and say it once on rank 0."""
        if any(known["code"] == code for known in self.record.warnings):
            return
        self.record.warnings.append({"code": code, "message": message})
        self.recorder.add(Event(name="warning", monotonic_ns=now(), message=message, data={"code": code}))
        if aloud and self.placement.rank == 0:
            warnings.warn(f"effprof: {message}", stacklevel=3)

    @contextmanager
    def guarded(self, part: str) -> Iterator[None]:
        """What fails inside is off and said so, and never reaches the training."""
        try:
            yield
        except Exception as error:
            self.warn(f"{part.replace(' ', '_')}_failed", f"{part} failed and is off ({type(error).__name__}: {error})")

    def close(self, status: str, reason: str = "") -> None:
        """Write what is left and the closing line. Later calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self.clock.end_steps()
        self.clock.switch(EFFPROF)
        self.write_record()
        if self._sampler is not None:
            self._sampler.stop()
        self.recorder.close(lambda: self._last_lines(status, reason))

    def _last_lines(self, status: str, reason: str) -> list[Line]:
        lines = self._sample(with_device=True)
        self.clock.switch(UNATTRIBUTED)
        end = End(status=status, monotonic_ns=now(), reason=reason, dropped_records=self.recorder.dropped)
        return [*lines, end]

    def _add_span(self, phase: int, start_ns: int, end_ns: int) -> None:
        self.recorder.add(Span(name=PHASES[phase], start_ns=start_ns, end_ns=end_ns))

    def _sample(self, *, with_device: bool = False) -> list[Line]:
        lines: list[Line] = [self.memory_line(with_device=with_device)]
        if self._sampler is not None:
            lines += self._sampler.check()
        if self._each_second is not None:
            lines += self._each_second()
        return lines

    def memory_line(self, *, with_device: bool = False) -> Memory:
        """Memory of this process and its allocator; `with_device` asks the driver too, which takes a while."""
        line = Memory(
            monotonic_ns=now(),
            step=self.clock.step_sequence,
            process_rss_bytes=self._process.memory_info().rss,
            process_peak_rss_bytes=peak_resident_bytes(),
            training_thread_cpu_ns=self._thread_clock(),
        )
        if self.device.type != "cpu":
            counters = allocator_counters(self.device)
            if with_device:
                counters.update(device_counters(self.device))
            for name, value in counters.items():
                setattr(line, name, value)
        return line

    def _warn_of_log(self, message: str) -> None:
        warnings.warn(f"effprof: {message}; training goes on without it", stacklevel=2)


def allocator_counters(device: DeviceIdentity) -> dict[str, int]:
    """What the caching allocator of `device` says of itself, for the fields of `Memory`; empty where it can't."""
    import torch

    try:
        module = torch.get_device_module(device.type)
        stats: dict[str, Any] = module.memory_stats(device.index)
    except (RuntimeError, AttributeError, AssertionError):
        return {}
    names = {
        "allocated_bytes": "allocated_bytes.all.current",
        "peak_allocated_bytes": "allocated_bytes.all.peak",
        "reserved_bytes": "reserved_bytes.all.current",
        "peak_reserved_bytes": "reserved_bytes.all.peak",
        "alloc_retries": "num_alloc_retries",
        "ooms": "num_ooms",
        "inactive_split_bytes": "inactive_split_bytes.all.current",
        "peak_inactive_split_bytes": "inactive_split_bytes.all.peak",
    }
    return {field: int(stats[key]) for field, key in names.items() if key in stats}


def device_counters(device: DeviceIdentity) -> dict[str, int]:
    """What the driver says is free of the device's memory, whoever holds the rest; empty where it can't."""
    import torch

    try:
        free, total = torch.get_device_module(device.type).mem_get_info(device.index)
    except (RuntimeError, AttributeError, AssertionError, NotImplementedError):
        return {}
    return {"device_free_bytes": int(free), "device_total_bytes": int(total)}


def _processor_clock(thread: int) -> Callable[[], int | None]:
    """Reads a thread's processor time in nanoseconds, from any thread; None where the system has no such clock."""
    try:
        clock = time.pthread_getcpuclockid(thread)
    except (AttributeError, OSError):
        return lambda: None

    def read() -> int | None:
        try:
            return time.clock_gettime_ns(clock)
        except OSError:  # the thread has ended
            return None

    return read


def peak_resident_bytes() -> int | None:
    """Largest resident set of this process so far; None where the system does not count it per program."""
    # getrusage's ru_maxrss would do, but it is inherited from the parent through exec
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def device_facts(device: DeviceIdentity) -> dict[str, Any]:
    """The device as a header names it; nothing that is not known."""
    names = ("type", "index", "name", "vendor", "memory_bytes", "compute_units", "uuid", "pci_bus_id")
    return {name: getattr(device, name) for name in names if getattr(device, name, None) is not None}


def _choose_directory(
    run_dir: str | os.PathLike[str] | None, root: Path, placement: Placement, own_id: str | None
) -> tuple[Path, str]:
    if run_dir is not None:
        path = Path(run_dir).expanduser().absolute()
        return path, path.name
    run_id = choose_run_id(placement.world_size, placement.nodes, own_id)
    base = root.expanduser().absolute() / RUNS_DIRECTORY
    if placement.world_size > 1 or run_id != own_id:
        return base / run_id, run_id
    # a single process chose the id itself: another fit in the same process is another run
    number = 1
    path = base / run_id
    while path.exists():
        number += 1
        path = base / f"{run_id}-{number}"
    return path, path.name


def _recorded(run_dir: Path) -> RunRecord | None:
    try:
        return msgspec.json.decode((run_dir / RUN_FILE).read_bytes(), type=RunRecord)
    except (OSError, msgspec.DecodeError):
        return None


def _software() -> dict[str, Any]:
    software: dict[str, Any] = {"python": platform.python_version(), "effprof": __version__, "os": platform.platform()}
    for package in _PACKAGES:
        try:
            software[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return software
