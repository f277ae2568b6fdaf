"""Vendors' Python libraries, asked by a process of their own; packages made after their documentation stand in."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from effprof.hardware.probes.amd import AmdProbe
from effprof.hardware.probes.base import Probe, Reading
from effprof.hardware.probes.gaudi import GaudiProbe
from effprof.hardware.probes.library_stream import PERIOD_S

# Two boards: an MI300X, and an older one that answers "N/A", a key of before ROCm 6.2.1, and errors.
AMDSMI = """
import enum

class AmdSmiLibraryException(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.err_code = code

class AmdSmiTemperatureType(enum.IntEnum):
    EDGE = 0
    HOTSPOT = 1
    JUNCTION = 1
    VRAM = 2

class AmdSmiTemperatureMetric(enum.IntEnum):
    CURRENT = 0

class AmdSmiClkType(enum.IntEnum):
    GFX = 0
    MEM = 4

counted = 0

def amdsmi_init():
    print("a library that talks")

def amdsmi_get_processor_handles():
    return [0, 1]

def amdsmi_get_gpu_asic_info(handle):
    name = ["AMD Instinct MI300X OAM", "AMD Instinct MI210"][handle]
    return {"market_name": name, "num_compute_units": [304, "N/A"][handle]}

def amdsmi_get_gpu_driver_info(handle):
    return {"driver_name": "amdgpu", "driver_version": "6.12.12", "driver_date": "2025"}

def amdsmi_get_gpu_device_uuid(handle):
    return f"6c{handle}ff74a0-0000-1000-80a1-e7a3b6b9c1d2"

def amdsmi_get_gpu_device_bdf(handle):
    return f"0000:{0x1B + handle:02X}:00.0"

def amdsmi_get_gpu_vram_usage(handle):
    return {"vram_total": [196592, 65520][handle], "vram_used": 283}

def amdsmi_get_power_info(handle):
    table = [{"socket_power": 752, "current_socket_power": 752, "average_socket_power": "N/A"},
             {"socket_power": "N/A", "current_socket_power": "N/A", "average_socket_power": 92}]
    return table[handle]

def amdsmi_get_power_cap_info(handle):
    return {"power_cap": [750000000, 300000000][handle]}

def amdsmi_get_energy_count(handle):
    global counted
    counted += 65536
    if handle:
        return {"power": 0, "counter_resolution": 15.3, "timestamp": 1}
    return {"energy_accumulator": counted, "counter_resolution": 15.25, "timestamp": 1}

def amdsmi_get_gpu_activity(handle):
    return {"gfx_activity": [97, "N/A"][handle], "umc_activity": 41, "mm_activity": "N/A"}

def amdsmi_get_temp_metric(handle, kind, metric):
    if handle and kind != AmdSmiTemperatureType.EDGE:
        raise AmdSmiLibraryException(2)
    return 61 + int(kind)

def amdsmi_get_clock_info(handle, kind):
    if handle:
        raise AmdSmiLibraryException(10)
    return {"clk": 2100 if kind == AmdSmiClkType.GFX else 1300, "max_clk": 2100}
"""
PYHLML = """
class HLMLError(Exception):
    def __init__(self, value):
        self.value = value

class Memory:
    total, used, free = 137438953472, 103_000_000_000, 34_438_953_472

class Rates:
    aip, memory = 88, 0

class Address:
    bus_id = b"0000:19:00.0\\0"

energy = 5_000_000

def hlmlInit():
    print("Failed to load nothing")

def hlmlDeviceGetCount():
    return 1

def hlmlDeviceGetHandleByIndex(index):
    return index

def hlmlDeviceGetName(handle):
    return b"HL-325L\\0\\0"

def hlmlDeviceGetUUID(handle):
    return b"01P4-HL3090A0-18-U4V193-22-07-00"

def hlmlGetDriverVersion():
    return b"1.22.1-abc"

def hlmlDeviceGetPCIInfo(handle):
    return Address()

def hlmlDeviceGetMemoryInfo(handle):
    return Memory()

def hlmlDeviceGetUtilizationRates(handle):
    return Rates()

def hlmlDeviceGetPowerUsage(handle):
    return 623_500

def hlmlDeviceGetPowerManagementLimit(handle):
    return 900_000

def hlmlDeviceGetTotalEnergyConsumption(handle):
    global energy
    energy += 640_000
    return energy

def hlmlDeviceGetTemperature(handle, sensor):
    if sensor == 3:
        raise HLMLError(3)
    return 55

def hlmlDeviceGetClockInfo(handle, kind=0):
    return 1600

def hlmlDeviceGetMaxClockInfo(handle, kind=0):
    raise HLMLError(4)
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages the probe's process finds first."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no vendor's tool stands in
    return tmp_path


def until_read(probe: Probe) -> list[tuple[str, Reading]]:
    for _ in range(600):
        if readings := probe.read():
            return readings
        time.sleep(0.02)
    raise AssertionError("the probe never answered")


def test_amdsmi_with_its_energy_counter(packages: Path) -> None:
    (packages / "amdsmi.py").write_text(AMDSMI)
    probe = AmdProbe()
    assert probe.reason == ""
    new, old = probe.devices()
    assert (new.name, new.pci_bus_id, new.driver, new.compute_units) == (
        *("AMD Instinct MI300X OAM", "0000:1b:00.0", "6.12.12", 304),
    )
    assert (new.memory_bytes, new.power_limit_w) == (196592 * 2**20, 750.0)
    assert old.compute_units is None
    found = {(key, reading.name): reading for key, reading in until_read(probe)}
    later = {(key, reading.name): reading for key, reading in until_read(probe)}
    probe.close()
    assert {name for _, name in found} == set(probe.describe())
    assert found[new.key, "power_w"].value == 752.0
    assert found[old.key, "power_w"].value == 92.0
    # 65,536 counts of 15.25 µJ per question
    energy = [each[new.key, "energy_j"].value for each in (found, later)]
    assert energy[0] is not None
    assert energy[1] is not None
    counts = (energy[1] - energy[0]) / (65536 * 15.25e-6)
    assert counts >= 1
    assert math.isclose(counts, round(counts), rel_tol=1e-6)
    assert found[new.key, "energy_j"].unit == "J"
    assert found[new.key, "temperature_c"].value == 62.0
    assert found[old.key, "temperature_c"].value == 61.0  # only its edge has a sensor
    assert (found[new.key, "sm_clock_mhz"].value, found[new.key, "memory_clock_mhz"].value) == (2100.0, 1300.0)
    reasons = {name: found[old.key, name].reason for name in ("energy_j", "utilization_percent", "sm_clock_mhz")}
    assert reasons == {
        "energy_j": "not_supported",
        "utilization_percent": "not_supported",
        "sm_clock_mhz": "no_permission",
    }


def test_pyhlml_with_its_energy_counter(packages: Path) -> None:
    (packages / "pyhlml.py").write_text(PYHLML)
    probe = GaudiProbe()
    assert probe.reason == ""
    (device,) = probe.devices()
    assert (device.name, device.uuid, device.pci_bus_id) == (
        *("HL-325L", "01P4-HL3090A0-18-U4V193-22-07-00", "0000:19:00.0"),
    )
    found = {reading.name: reading for _, reading in until_read(probe)}
    probe.close()
    assert found["power_w"].value == 623.5
    assert found["power_limit_w"].value == 900.0
    energy = found["energy_j"].value
    assert energy is not None
    assert (energy - 5000) % 640 == pytest.approx(0)
    assert found["memory_used_bytes"].value == 103e9
    assert found["sm_clock_mhz"].value == 1600.0
    assert (found["memory_temperature_c"].reason, found["sm_clock_max_mhz"].reason) == (
        *("not_supported", "no_permission"),
    )


def test_without_the_library_the_reason_names_it(packages: Path) -> None:
    probe = AmdProbe()
    assert probe.devices() == []
    assert probe.reason.startswith("no_tool: amdsmi: ModuleNotFoundError")


def test_a_library_without_its_driver(packages: Path) -> None:
    (packages / "pyhlml.py").write_text("raise RuntimeError('libhlml.so: driver not loaded')\n")
    assert GaudiProbe().reason.startswith("no_driver: pyhlml:")


def test_a_library_that_hangs_costs_a_reason_and_no_wait(packages: Path) -> None:
    later = AMDSMI.replace(
        '    return {"gfx_activity"',
        '    import time; time.sleep(60 * (counted > 3 * 65536))\n    return {"gfx_activity"',
    )
    (packages / "amdsmi.py").write_text(later)
    probe = AmdProbe()
    assert probe.devices()
    assert probe._runner is not None
    probe._runner._deadline_s = 3 * PERIOD_S
    longest, reasons = 0.0, set()
    until = time.monotonic() + 20
    while "timeout" not in reasons and time.monotonic() < until:
        began = time.monotonic()
        reasons |= {reading.reason for _, reading in probe.read()}
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.05)
    probe.close()
    assert "timeout" in reasons
    assert longest < 1.0
