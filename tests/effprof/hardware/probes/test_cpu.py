"""The host's probe: real readings of this machine, reasons where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from effprof.hardware.probes.cpu import HOST, CpuProbe, PackageEnergy


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


def zone(root: Path, name: str, label: str, microjoules: int) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_package_energy_adds_packages_and_unwraps(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    zone(tmp_path, "intel-rapl:2", "psys", 5)  # the platform holds the packages: not added
    zone(tmp_path, "intel-rapl:0:0", "dram", 7)  # inside a package
    energy = PackageEnergy(tmp_path)
    assert energy.read() == (0.0, "")
    (first / "energy_uj").write_text("100000\n")  # wrapped: 100 000 to the range's end, 100 000 on
    (second / "energy_uj").write_text("300000\n")
    joules, reason = energy.read()
    assert joules is not None
    assert abs(joules - 0.5) < 1e-9
    assert reason == ""


def test_no_energy_counter_is_a_reason(tmp_path: Path) -> None:
    assert PackageEnergy(tmp_path).read() == (None, "not_supported")
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("garbage")
    assert PackageEnergy(tmp_path).read() == (None, "parse")
