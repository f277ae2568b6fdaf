"""Reads NVIDIA boards and MIG slices through NVML. Runs in the sampler process only: these calls can block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from effprof.hardware.probes.base import ProbeDevice, Reading, Reason, Support
from effprof.hardware.probes.nvidia_values import (
    FIELDS,
    MEANINGS,
    PERMANENT_CODES,
    field_readings,
    make_reading,
    normalize_bus_id,
    reason_of,
)

PCI_VENDOR = "10de"
# Boards without a PCI entry (WSL, Jetson, a container without sysfs) still have a device node.
_DEVICE_NODES = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))


@dataclass
class _Handle:
    device: ProbeDevice
    handle: Any
    is_slice: bool = False
    is_partitioned: bool = False
    refused: dict[str, Reason] = field(default_factory=dict)  # questions this device will never answer


_NOT_IN_SAMPLES = ("energy_j", "pcie_tx_bytes", "pcie_rx_bytes", "nvlink_tx_bytes", "nvlink_rx_bytes")


class NvidiaProbe:
    """NVIDIA boards of this node, with the MIG slices cut from them."""

    name = "nvidia"
    vendor = "NVIDIA"
    torch_type = "cuda"
    support: ClassVar = Support(
        family="NVIDIA GPU, MIG slice and vGPU",
        source="NVML",
        readings={name: "documented" if name in _NOT_IN_SAMPLES else "recorded" for name in MEANINGS},
        evidence="H100 with MIG, H200 and L40S by drivers 590 and 595, A100 with MIG; vGPU after the documentation",
    )

    def __init__(self, pids: Sequence[int] = (), library: Any = None) -> None:
        self.reason = ""
        self._handles: list[_Handle] = []
        self._nvml: Any = library
        self._closed = False
        if self._nvml is None:
            try:
                import pynvml
            except ImportError as error:
                self.reason = f"no_tool: {error}"
                return
            self._nvml = pynvml
        _, code, message = self._call("nvmlInit")
        if code:
            self.reason = f"{reason_of(code)}: {message}"
            return
        self._handles = self._find_devices()

    @classmethod
    def is_present(cls, pci_vendors: frozenset[str]) -> bool:
        """Whether a board or its driver is there. A library that looks like NVML is not enough: others ship one."""
        return PCI_VENDOR in pci_vendors or any(node.exists() for node in _DEVICE_NODES)

    def devices(self) -> list[ProbeDevice]:
        return [entry.device for entry in self._handles]

    def describe(self) -> dict[str, dict[str, str]]:
        return {name: meaning.as_dict() for name, meaning in MEANINGS.items()} if self._handles else {}

    def read(self) -> list[tuple[str, Reading]]:
        if self._closed:
            return []
        return [(entry.device.key, reading) for entry in self._handles for reading in self._read_device(entry)]

    def close(self) -> None:
        if self._handles and not self._closed:
            self._call("nvmlShutdown")
        self._closed = True

    def _call(self, function: str, *arguments: Any, **named: Any) -> tuple[Any, int, str]:
        """One NVML call: (value, 0, "") or (None, nvmlReturn_t, message). The only place where its errors arrive."""
        try:
            return getattr(self._nvml, function)(*arguments, **named), 0, ""
        except self._nvml.NVMLError as error:
            return None, int(error.value), str(error)
        except Exception as error:  # a binding older or newer than expected: a missing name, another signature
            return None, 13, f"{type(error).__name__}: {error}"

    def _ask(self, entry: _Handle, function: str, *arguments: Any, **named: Any) -> tuple[Any, Reason]:
        """A question about one device; one it can never answer is asked once."""
        question = f"{function}{arguments}{sorted(named)}"
        if question in entry.refused:
            return None, entry.refused[question]
        value, code, _ = self._call(function, entry.handle, *arguments, **named)
        if code == 0:
            return value, ""
        reason = reason_of(code)
        if code in PERMANENT_CODES:
            entry.refused[question] = reason
        return None, reason

    def _find_devices(self) -> list[_Handle]:
        count, code, message = self._call("nvmlDeviceGetCount")
        if code:
            self.reason = f"{reason_of(code)}: {message}"
            return []
        found: list[_Handle] = []
        for index in range(count):
            handle, code, message = self._call("nvmlDeviceGetHandleByIndex", index)
            if code:  # a board that this user may not open is counted all the same
                self.reason = f"{reason_of(code)}: board {index}: {message}"
                continue
            board = self._identify(handle, f"board-{index}")
            mode, _ = self._ask(board, "nvmlDeviceGetMigMode")
            board.is_partitioned = bool(mode and mode[0])
            found.append(board)
            if board.is_partitioned:
                found += self._find_slices(board)
        if count == 0:
            self.reason = "no_driver: the driver lists no board"
        return found

    def _find_slices(self, board: _Handle) -> list[_Handle]:
        most, _ = self._ask(board, "nvmlDeviceGetMaxMigDeviceCount")
        slices = []
        for index in range(most or 0):
            handle, code, _ = self._call("nvmlDeviceGetMigDeviceHandleByIndex", board.handle, index)
            if code == 0:
                slices.append(self._identify(handle, f"{board.device.key}-slice-{index}", parent=board.device))
        return slices

    def _identify(self, handle: Any, fallback_key: str, parent: ProbeDevice | None = None) -> _Handle:
        entry = _Handle(ProbeDevice(fallback_key, "", self.vendor), handle, is_slice=parent is not None)
        uuid, _ = self._ask(entry, "nvmlDeviceGetUUID")
        name, _ = self._ask(entry, "nvmlDeviceGetName")
        memory, _ = self._memory(entry)
        pci, _ = self._ask(entry, "nvmlDeviceGetPciInfo") if parent is None else (None, "")
        limit, _ = self._ask(entry, "nvmlDeviceGetEnforcedPowerLimit") if parent is None else (None, "")
        driver, _, _ = self._call("nvmlSystemGetDriverVersion")
        attributes, _ = self._ask(entry, "nvmlDeviceGetAttributes_v2") if parent is not None else (None, "")
        entry.device = ProbeDevice(
            key=_text(uuid) or fallback_key,
            name=_text(name) or "NVIDIA GPU",
            vendor=self.vendor,
            uuid=_text(uuid),
            pci_bus_id=normalize_bus_id(pci.busId) if pci is not None else (parent.pci_bus_id if parent else None),
            memory_bytes=int(memory.total) if memory is not None else None,
            compute_units=int(attributes.multiprocessorCount) if attributes is not None else None,
            power_limit_w=limit / 1000 if limit is not None else None,
            parent=parent.key if parent else None,
            driver=_text(driver),
        )
        return entry

    def _memory(self, entry: _Handle) -> tuple[Any, Reason]:
        """Memory by the call that tells the driver's reserve apart, else by the old one that counts it as used."""
        version = getattr(self._nvml, "nvmlMemory_v2", None)
        if version is not None:
            memory, reason = self._ask(entry, "nvmlDeviceGetMemoryInfo", version=version)
            if memory is not None:
                return memory, reason
        return self._ask(entry, "nvmlDeviceGetMemoryInfo")

    def _read_device(self, entry: _Handle) -> list[Reading]:
        memory, reason = self._memory(entry)
        names = {"memory_used_bytes": "used", "memory_reserved_bytes": "reserved", "memory_total_bytes": "total"}
        readings = []
        for name, attribute in names.items():
            value = getattr(memory, attribute, None)
            why: Reason = reason or ("not_supported" if value is None else "")
            readings.append(make_reading(name, value, why, of_slice=entry.is_slice))
        if entry.is_slice:  # power, clocks, temperature and links exist per board only
            return readings
        readings += self._read_fields(entry)
        readings += self._read_gauges(entry)
        return readings

    def _read_fields(self, entry: _Handle) -> list[Reading]:
        readings = {reading.name: reading for reading in self._field_values(entry)}
        # no average power on A100 and older, no field call at all on old drivers: the plain calls then answer (mW, mJ)
        for name, function in (
            ("power_w", "nvmlDeviceGetPowerUsage"),
            ("energy_j", "nvmlDeviceGetTotalEnergyConsumption"),
        ):
            if readings[name].value is None:
                value, reason = self._ask(entry, function)
                readings[name] = make_reading(name, None if value is None else value / 1000, reason)
        return list(readings.values())

    def _field_values(self, entry: _Handle) -> list[Reading]:
        question = "nvmlDeviceGetFieldValues"
        code, reason, entries = 0, entry.refused.get(question, ""), None
        if not reason:
            wanted = [(known.field_id, known.scope_id) for known in FIELDS]
            entries, code, _ = self._call(question, entry.handle, wanted)
        if entries is not None:
            return field_readings(entries)
        reason = reason or reason_of(code)
        if code in PERMANENT_CODES:
            entry.refused[question] = reason
        return [make_reading(known.reading, None, reason) for known in FIELDS]

    def _read_gauges(self, entry: _Handle) -> list[Reading]:
        nvml = self._nvml
        limit, reason = self._ask(entry, "nvmlDeviceGetEnforcedPowerLimit")
        readings = [make_reading("power_limit_w", None if limit is None else limit / 1000, reason)]
        for name, clock in (("sm_clock_mhz", nvml.NVML_CLOCK_SM), ("memory_clock_mhz", nvml.NVML_CLOCK_MEM)):
            readings.append(make_reading(name, *self._ask(entry, "nvmlDeviceGetClockInfo", clock)))
        highest = self._ask(entry, "nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)
        readings.append(make_reading("sm_clock_max_mhz", *highest))
        celsius, reason = self._first(
            entry, ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"), nvml.NVML_TEMPERATURE_GPU
        )
        readings.append(make_reading("temperature_c", celsius, reason))
        mask, reason = self._first(
            entry, ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        )
        readings.append(make_reading("throttle_mask", mask, reason))
        rates, reason = self._ask(entry, "nvmlDeviceGetUtilizationRates")
        if rates is None and entry.is_partitioned:
            reason = "sliced"
        readings.append(make_reading("utilization_percent", getattr(rates, "gpu", None), reason))
        readings.append(make_reading("memory_utilization_percent", getattr(rates, "memory", None), reason))
        return readings

    def _first(self, entry: _Handle, functions: Sequence[str], *arguments: Any) -> tuple[Any, Reason]:
        """The first answer of calls that mean the same on newer and older drivers."""
        value: Any = None
        reason: Reason = "not_supported"
        for function in functions:
            value, reason = self._ask(entry, function, *arguments)
            if value is not None:
                break
        return value, reason


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


PROBE = NvidiaProbe
