"""The host's probe: real readings of this machine, reasons where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from effprof.hardware.probes.cpu import HOST, CpuProbe


def sample(probe: CpuProbe) -> dict[tuple[str, str], float | int | None]:
    return {(key, reading.name): reading.value for key, reading in probe.read()}


def test_the_host_and_a_watched_process_are_read() -> None:
    probe = CpuProbe([os.getpid()])
    values = sample(probe)
    mine = f"pid-{os.getpid()}"
    assert [device.key for device in probe.devices()] == [HOST, mine]
    rss = psutil.Process().memory_info().rss
    assert values[mine, "process_rss_bytes"] == rss or abs((values[mine, "process_rss_bytes"] or 0) - rss) < 64 << 20
    total, used = values[HOST, "memory_total_bytes"], values[HOST, "memory_used_bytes"]
    assert total is not None
    assert used is not None
    assert 0 < used < total <= psutil.virtual_memory().total
    assert 0 <= (values[HOST, "cpu_percent"] or 0) <= 100


def test_processor_time_is_a_counter_that_grows_with_work() -> None:
    probe = CpuProbe([os.getpid()])
    key = (f"pid-{os.getpid()}", "process_cpu_s")
    before = sample(probe)[key]
    sum(i * i for i in range(3_000_000))
    after = sample(probe)[key]
    assert before is not None
    assert after is not None
    assert after > before


def test_a_process_that_ended_has_a_reason() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    probe = CpuProbe([child.pid])
    assert sample(probe)[f"pid-{child.pid}", "process_rss_bytes"]
    child.communicate(b"\n")
    reasons = {reading.reason for key, reading in probe.read() if key == f"pid-{child.pid}"}
    assert reasons == {"device_lost"}
    assert {reading.reason for key, reading in CpuProbe([child.pid]).read() if key != HOST} == {"device_lost"}
