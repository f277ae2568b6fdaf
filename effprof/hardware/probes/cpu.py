"""Reads the host through psutil: processor, memory, disk and network counters, and the watched processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import ClassVar

import psutil

from effprof.hardware.host import cgroup_memory, core_count, cpu_model, total_memory
from effprof.hardware.probes.base import Meaning, ProbeDevice, Reading, Reason, Support

HOST = "host"

HOST_MEANINGS = {
    "cpu_percent": Meaning("percent", "host", "gauge", "share of all cores' time busy since the previous sample"),
    "memory_used_bytes": Meaning("bytes", "host", "gauge", "total minus available; of the cgroup where it is limited"),
    "memory_total_bytes": Meaning("bytes", "host", "gauge", "the cgroup's limit where there is one"),
    "disk_read_bytes": Meaning("bytes", "host", "counter", "all disks, since boot"),
    "disk_write_bytes": Meaning("bytes", "host", "counter", "all disks, since boot"),
    "net_sent_bytes": Meaning("bytes", "host", "counter", "all interfaces but loopback, since boot"),
    "net_received_bytes": Meaning("bytes", "host", "counter", "all interfaces but loopback, since boot"),
}
PROCESS_MEANINGS = {
    "process_rss_bytes": Meaning("bytes", "process", "gauge", "resident memory of the process itself"),
    "process_cpu_s": Meaning("s", "process", "counter", "user and system time of the process itself"),
}


class CpuProbe:
    """The host and the watched processes, always present."""

    name = "cpu"
    vendor = "host"
    support: ClassVar = Support(
        family="CPU and host",
        source="psutil, cgroup",
        readings=dict.fromkeys([*HOST_MEANINGS, *PROCESS_MEANINGS], "run"),
        unavailable={
            "power_w": "see the energy counters of RAPL",
            "throttle": "psutil has no counter",
            "temperature_c": "psutil's sensors have no name that holds on every board",
            "clock_mhz": "the kernel's figure is a request, not what ran",
        },
        evidence="run on x86-64 Linux in a container",
    )

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self.reason = ""
        self._processes: dict[int, psutil.Process | None] = {}
        for pid in dict.fromkeys(pids):
            try:
                self._processes[pid] = psutil.Process(pid)
            except psutil.Error:
                self._processes[pid] = None
        self._closed = False
        psutil.cpu_percent(interval=None)  # the first call has no window and answers 0.0

    @classmethod
    def is_present(cls, pci_vendors: frozenset[str]) -> bool:
        """Every machine has a host."""
        return True

    def devices(self) -> list[ProbeDevice]:
        host = ProbeDevice(
            key=HOST,
            name=cpu_model(),
            vendor=self.vendor,
            memory_bytes=total_memory(),
            compute_units=core_count(),
        )
        watched = [ProbeDevice(key=f"pid-{pid}", name=f"process {pid}", vendor=self.vendor) for pid in self._processes]
        return [host, *watched]

    def describe(self) -> dict[str, dict[str, str]]:
        meanings = HOST_MEANINGS | (PROCESS_MEANINGS if self._processes else {})
        return {name: meaning.as_dict() for name, meaning in meanings.items()}

    def read(self) -> list[tuple[str, Reading]]:
        if self._closed:
            return []
        sample = [(HOST, _reading(name, value, reason)) for name, (value, reason) in self._host().items()]
        for pid, process in self._processes.items():
            sample += [(f"pid-{pid}", reading) for reading in _read_process(process)]
        return sample

    def close(self) -> None:
        self._closed = True

    def _host(self) -> dict[str, tuple[float | int | None, Reason]]:
        values: dict[str, tuple[float | int | None, Reason]] = dict.fromkeys(HOST_MEANINGS, (None, "not_supported"))
        values["cpu_percent"] = _attempt(lambda: psutil.cpu_percent(interval=None))
        if memory := cgroup_memory():
            values["memory_used_bytes"], values["memory_total_bytes"] = (memory[0], ""), (memory[1], "")
        else:
            values["memory_used_bytes"] = _attempt(
                lambda: psutil.virtual_memory().total - psutil.virtual_memory().available
            )
            values["memory_total_bytes"] = _attempt(lambda: psutil.virtual_memory().total)
        with contextlib.suppress(Exception):  # containers hide /proc/diskstats: the readings then stay unsupported
            if disk := psutil.disk_io_counters():
                values["disk_read_bytes"], values["disk_write_bytes"] = (disk.read_bytes, ""), (disk.write_bytes, "")
        with contextlib.suppress(Exception):
            links = [link for name, link in psutil.net_io_counters(pernic=True).items() if name != "lo"]
            if links:
                values["net_sent_bytes"] = (sum(link.bytes_sent for link in links), "")
                values["net_received_bytes"] = (sum(link.bytes_recv for link in links), "")
        return values


def _attempt(call: Callable[[], float | int]) -> tuple[float | int | None, Reason]:
    """The call's value, or None with the reason."""
    try:
        return call(), ""
    except psutil.AccessDenied:
        return None, "no_permission"
    except psutil.Error:
        return None, "device_lost"
    except Exception:
        return None, "error"


def _reading(name: str, value: float | int | None, reason: Reason) -> Reading:
    meaning = HOST_MEANINGS.get(name) or PROCESS_MEANINGS[name]
    return Reading(name, value, meaning.unit, meaning.scope, meaning.kind, reason)


def _read_process(process: psutil.Process | None) -> list[Reading]:
    if process is None:
        return [_reading(name, None, "device_lost") for name in PROCESS_MEANINGS]
    return [
        _reading("process_rss_bytes", *_attempt(lambda: process.memory_info().rss)),
        _reading("process_cpu_s", *_attempt(lambda: sum(process.cpu_times()[:2]))),
    ]


PROBE = CpuProbe
