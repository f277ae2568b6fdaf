"""NVML's answers become readings: its real errors here, recorded values of real boards where they were published."""

from __future__ import annotations

import csv
from ctypes import c_uint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from effprof.hardware.probes.base import Reading
from effprof.hardware.probes.nvidia import NvidiaProbe
from effprof.hardware.probes.nvidia_values import (
    FIELDS,
    MEANINGS,
    decode_field,
    is_fault,
    normalize_bus_id,
    reason_of,
    throttle_reasons,
)

SAMPLES = Path(__file__).resolve().parents[4].parent / "shared" / "hardware" / "samples"
MIB = 2**20


def test_without_a_driver_there_is_nothing_but_a_reason() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        probe = NvidiaProbe()
        assert probe.devices() == []
        assert probe.describe() == {}
        assert probe.read() == []
        assert probe.reason.startswith("no_driver")
        probe.close()
    else:
        pynvml.nvmlShutdown()
        probe = NvidiaProbe()
        assert probe.devices()
        assert {reading.name for _, reading in probe.read()} <= set(MEANINGS)


def test_presence_goes_by_the_bus_first() -> None:
    assert NvidiaProbe.is_present(frozenset({"10de", "8086"}))


@pytest.mark.parametrize(
    ("mask", "names", "fault"),
    [
        (0x0, [], False),
        (0x1, ["idle"], False),
        (0x4, ["power_cap"], False),
        (0x44, ["power_cap", "hw_thermal"], True),
        (0x88, ["hw_slowdown", "power_brake"], True),
        (0x1004, ["power_cap", "0x1000"], False),
    ],
)
def test_throttle_bits_have_names(mask: int, names: list[str], fault: bool) -> None:
    assert throttle_reasons(mask) == names
    assert is_fault(mask) is fault


def test_throttle_bits_are_nvmls() -> None:
    assert throttle_reasons(pynvml.nvmlClocksEventReasonSwPowerCap) == ["power_cap"]
    assert throttle_reasons(pynvml.nvmlClocksEventReasonSwThermalSlowdown) == ["sw_thermal"]
    assert throttle_reasons(pynvml.nvmlClocksThrottleReasonHwThermalSlowdown) == ["hw_thermal"]


def test_field_ids_are_nvmls() -> None:
    ids = {field.reading: field.field_id for field in FIELDS}
    assert ids["energy_j"] == pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
    assert ids["power_w"] == pynvml.NVML_FI_DEV_POWER_AVERAGE
    assert ids["power_instant_w"] == pynvml.NVML_FI_DEV_POWER_INSTANT
    assert ids["throttle_power_cap_s"] == pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP
    assert ids["throttle_hw_thermal_s"] == pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN
    assert ids["pcie_tx_bytes"] == pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES
    assert ids["nvlink_rx_bytes"] == pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX
    assert ids["memory_temperature_c"] == pynvml.NVML_FI_DEV_MEMORY_TEMP


def test_errors_become_reasons() -> None:
    assert reason_of(pynvml.NVML_ERROR_NOT_SUPPORTED) == "not_supported"
    assert reason_of(pynvml.NVML_ERROR_NO_PERMISSION) == "no_permission"
    assert reason_of(pynvml.NVML_ERROR_GPU_IS_LOST) == "device_lost"
    assert reason_of(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH) == "no_driver"
    assert reason_of(pynvml.NVML_ERROR_UNKNOWN) == "error"


def field_value(value: float, kind: int, code: int = 0) -> Any:
    """NVML's own structure, filled as the driver fills it."""
    entry = pynvml.c_nvmlFieldValue_t()
    entry.nvmlReturn, entry.valueType = code, kind
    member = {
        pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    }.get(kind, "ullVal")
    setattr(entry.value, member, value)
    return entry


def test_each_field_has_its_own_type_and_status() -> None:
    assert decode_field(field_value(627_400, pynvml.NVML_VALUE_TYPE_UNSIGNED_INT)) == (627_400, "")
    assert decode_field(field_value(1.5, pynvml.NVML_VALUE_TYPE_DOUBLE)) == (1.5, "")
    assert decode_field(field_value(-40, pynvml.NVML_VALUE_TYPE_SIGNED_INT)) == (-40, "")
    refused = field_value(7, pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert decode_field(refused) == (None, "not_supported")
    assert decode_field(field_value(0, 99)) == (None, "parse")
    no_value = field_value(2**64 - 1, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG)
    assert decode_field(no_value) == (None, "not_supported")


@pytest.mark.parametrize("bus_id", ["00000000:83:00.0", b"00000000:83:00.0", "0000:83:00.0"])
def test_bus_addresses_are_written_as_sysfs_does(bus_id: str | bytes) -> None:
    assert normalize_bus_id(bus_id) == "0000:83:00.0"


class RecordedBoard:
    """Stands where NVML's library would be, answering with one board's recorded `nvidia-smi --query-gpu` values.

    Raises pynvml's own errors where the recording has none. With `slices`, a board in MIG mode.
    """

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    nvmlMemory_v2 = pynvml.nvmlMemory_v2

    def __init__(self, file: str, slices: tuple[tuple[str, int, int], ...] = (), old_driver: bool = False) -> None:
        path = SAMPLES / file
        if not path.exists():
            pytest.skip(f"recorded sample {file} is not beside this checkout")
        with path.open(newline="") as stream:
            names, values = (row for row in csv.reader(stream))
        self.cells = {name.strip().partition(" [")[0]: value.strip() for name, value in zip(names, values, strict=True)}
        self.slices = slices
        self.old_driver = old_driver
        self.asked: list[str] = []
        self.lost = False

    def number(self, name: str) -> float:
        text = self.cells[name].split()[0]
        if text.startswith(("[", "N/A")):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return int(text, 16) if text.startswith("0x") else float(text)

    def check(self, handle: Any, name: str) -> None:
        self.asked.append(name)
        if self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if handle != "board":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.cells["driver_version"]

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return "board"

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return self.cells["uuid"] if handle == "board" else f"MIG-{handle}"

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return self.cells["name"] + ("" if handle == "board" else f" MIG {self.slices[handle][0]}")

    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:
        return SimpleNamespace(busId=self.cells["pci.bus_id"].encode())

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        if self.cells["mig.mode.current"] not in ("Enabled", "Disabled"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(self.cells["mig.mode.current"] == "Enabled")] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> int:
        if index >= len(self.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return index

    def nvmlDeviceGetAttributes_v2(self, handle: Any) -> Any:
        return pynvml.c_nvmlDeviceAttributes(multiprocessorCount=self.slices[handle][1])

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        if self.old_driver and version is not None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        if handle != "board":
            return SimpleNamespace(total=self.slices[handle][2] * MIB, used=1000 * MIB, reserved=16 * MIB)
        sizes = {part: int(self.number(f"memory.{part}")) * MIB for part in ("total", "used", "reserved")}
        if version is None:  # the old call knows no reserve: it counts as used
            return SimpleNamespace(total=sizes["total"], used=sizes["used"] + sizes["reserved"])
        return SimpleNamespace(**sizes)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        self.check(handle, "power limit")
        return round(self.number("enforced.power.limit") * 1000)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        self.check(handle, "power usage")
        return round(self.number("power.draw") * 1000)

    def nvmlDeviceGetClockInfo(self, handle: Any, clock: int) -> int:
        self.check(handle, "clock")
        return int(self.number("clocks.current.sm" if clock == pynvml.NVML_CLOCK_SM else "clocks.current.memory"))

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        self.check(handle, "temperature")
        return int(self.number("temperature.gpu"))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        self.check(handle, "reasons")
        return int(self.number("clocks_event_reasons.active"))

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        self.check(handle, "utilization")
        return SimpleNamespace(gpu=int(self.number("utilization.gpu")), memory=int(self.number("utilization.memory")))

    def nvmlDeviceGetFieldValues(self, handle: Any, wanted: list[tuple[int, int]]) -> list[Any]:
        self.check(handle, "fields")
        if self.old_driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        recorded = {
            185: ("power.draw.average", 1e3),
            186: ("power.draw.instant", 1e3),
            82: ("temperature.memory", 1),
            74: ("clocks_event_reasons_counters.sw_power_cap", 1e3),  # printed in µs, the field is in ns
            76: ("clocks_event_reasons_counters.sync_boost", 1e3),
            269: ("clocks_event_reasons_counters.sw_thermal_slowdown", 1e3),
            270: ("clocks_event_reasons_counters.hw_thermal_slowdown", 1e3),
            271: ("clocks_event_reasons_counters.hw_power_brake_slowdown", 1e3),
        }
        entries = []
        for field_id, _ in wanted:
            try:
                name, factor = recorded[field_id]
                value = round(self.number(name) * factor)
                entries.append(field_value(value, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG))
            except (KeyError, pynvml.NVMLError):
                entries.append(field_value(0, 0, pynvml.NVML_ERROR_NOT_SUPPORTED))
        return entries


def readings_of(probe: NvidiaProbe, key: str) -> dict[str, Reading]:
    return {reading.name: reading for device, reading in probe.read() if device == key}


def test_a_loaded_h200_reads_as_nvidia_smi_printed_it() -> None:
    probe = NvidiaProbe(library=RecordedBoard("nvidia-smi_h200_query-gpu_load.csv"))
    (board,) = probe.devices()
    assert board.name == "NVIDIA H200"
    assert board.pci_bus_id == "0000:83:00.0"
    assert board.memory_bytes == 143_771 * MIB
    assert board.power_limit_w == 700.0
    assert board.driver == "590.48.01"
    read = readings_of(probe, board.key)
    assert set(read) == set(MEANINGS) == set(probe.describe())
    assert read["power_w"].value == pytest.approx(627.40)
    assert read["power_instant_w"].value == pytest.approx(626.26)
    assert read["sm_clock_mhz"].value == 1980
    assert read["temperature_c"].value == 52
    assert read["memory_temperature_c"].value == 40
    assert read["utilization_percent"].value == 100
    assert read["memory_used_bytes"].value == 32_362 * MIB
    assert read["memory_reserved_bytes"].value == 614 * MIB
    assert read["throttle_mask"].value == 0
    assert read["energy_j"] == Reading("energy_j", None, "J", "board", "counter", "not_supported")


def test_throttle_time_is_in_seconds_and_a_missing_sensor_has_a_reason() -> None:
    probe = NvidiaProbe(library=RecordedBoard("nvidia-smi_l40s_query-gpu_load.csv"))
    read = readings_of(probe, probe.devices()[0].key)
    assert read["throttle_power_cap_s"].value == pytest.approx(204.642816)
    assert read["memory_temperature_c"].reason == "not_supported"
    assert read["power_w"].value == pytest.approx(110.23)


def test_a_partitioned_board_keeps_its_power_and_its_slices_their_memory() -> None:
    slices = (("3g.40gb", 60, 40_448), ("1g.10gb", 16, 9_856))
    probe = NvidiaProbe(library=RecordedBoard("nvidia-smi_h100-mig_query-gpu_load.csv", slices))
    board, first, second = probe.devices()
    assert first.name == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert first.parent == second.parent == board.key
    assert (first.compute_units, second.compute_units) == (60, 16)
    assert first.pci_bus_id == board.pci_bus_id
    whole, part = readings_of(probe, board.key), readings_of(probe, first.key)
    assert whole["power_w"].value == pytest.approx(433.78)
    assert whole["utilization_percent"].reason == "sliced"
    assert set(part) == {"memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes"}
    assert part["memory_total_bytes"].value == 40_448 * MIB
    assert part["memory_total_bytes"].scope == "slice"


def test_an_old_driver_answers_by_the_plain_calls() -> None:
    library = RecordedBoard("nvidia-smi_l40s_query-gpu_load.csv", old_driver=True)
    probe = NvidiaProbe(library=library)
    read = readings_of(probe, probe.devices()[0].key)
    assert read["power_w"].value == pytest.approx(110.23)
    assert read["memory_reserved_bytes"].reason == "not_supported"
    assert read["memory_used_bytes"].value == (1235 + 609) * MIB
    assert read["throttle_power_cap_s"].reason == "not_supported"
    probe.read()
    assert library.asked.count("fields") == 1  # what the driver lacks is not asked for at every second


def test_a_lost_board_gives_reasons_not_exceptions() -> None:
    library = RecordedBoard("nvidia-smi_h200_query-gpu_load.csv")
    probe = NvidiaProbe(library=library)
    key = probe.devices()[0].key
    library.lost = True
    assert readings_of(probe, key)["power_w"].reason == "device_lost"
    library.lost = False
    assert readings_of(probe, key)["power_w"].value == pytest.approx(627.40)  # and is asked again


def test_a_field_entry_is_what_the_binding_returns() -> None:
    """The structure the tests fill is the driver's: its members have the sizes NVML writes."""
    assert {name for name, _ in pynvml.c_nvmlFieldValue_t._fields_} >= {"valueType", "nvmlReturn", "value"}
    assert dict(pynvml.c_nvmlValue_t._fields_)["uiVal"] is c_uint
