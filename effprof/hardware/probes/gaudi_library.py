"""Asks Intel's library for Gaudi, the Python package habana-pyhlml: what hl-smi prints, the energy counter and clocks.

Power and its limit are in mW, energy in mJ since the driver was loaded, memory in bytes (`pyhlml/main.py`, 1.24).
Errors use NVML's numbers. The package prints to standard output where the driver's library is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from effprof.hardware.probes.base import Reason
from effprof.hardware.probes.library_stream import ask, run
from effprof.hardware.probes.nvidia_values import reason_of
from effprof.hardware.probes.tool import Sample
from effprof.hardware.probes.tool_text import bus_id

_ON_CHIP, _HBM = 0, 3  # hlml_temperature_sensors_t
_SOC = 0  # hlml_clock_type_t


def open_library() -> Callable[[], list[Sample]]:
    """Opens pyhlml; returns what reads all boards.

    Raises:
        Exception: the package or the driver is missing.
    """
    import pyhlml

    pyhlml.hlmlInit()
    handles = [pyhlml.hlmlDeviceGetHandleByIndex(index) for index in range(pyhlml.hlmlDeviceGetCount())]
    if not handles:
        raise RuntimeError("no devices")
    return lambda: [_sample(pyhlml, index, handle) for index, handle in enumerate(handles)]


def _sample(hlml: Any, index: int, handle: Any) -> Sample:
    def text(function: str, *arguments: Any) -> str | None:
        try:
            found = getattr(hlml, function)(*arguments)
        except Exception:
            return None
        return (found.decode(errors="replace") if isinstance(found, bytes) else str(found)).strip("\0 ") or None

    def address() -> str | None:
        try:
            found = hlml.hlmlDeviceGetPCIInfo(handle).bus_id
        except Exception:
            return None
        return bus_id(found.decode(errors="replace") if isinstance(found, bytes) else str(found))

    answers = ask(
        {
            "memory_used_bytes": lambda: hlml.hlmlDeviceGetMemoryInfo(handle).used,
            "memory_total_bytes": lambda: hlml.hlmlDeviceGetMemoryInfo(handle).total,
            "power_w": lambda: hlml.hlmlDeviceGetPowerUsage(handle) / 1e3,
            "power_limit_w": lambda: hlml.hlmlDeviceGetPowerManagementLimit(handle) / 1e3,
            "energy_j": lambda: hlml.hlmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
            "utilization_percent": lambda: hlml.hlmlDeviceGetUtilizationRates(handle).aip,
            "temperature_c": lambda: hlml.hlmlDeviceGetTemperature(handle, _ON_CHIP),
            "memory_temperature_c": lambda: hlml.hlmlDeviceGetTemperature(handle, _HBM),
            "sm_clock_mhz": lambda: hlml.hlmlDeviceGetClockInfo(handle, _SOC),
            "sm_clock_max_mhz": lambda: hlml.hlmlDeviceGetMaxClockInfo(handle, _SOC),
        },
        _why,
    )
    return Sample(
        index=str(index),
        name=text("hlmlDeviceGetName", handle) or "Gaudi",
        uuid=text("hlmlDeviceGetUUID", handle),
        pci_bus_id=address(),
        driver=text("hlmlGetDriverVersion"),
        **answers,
    )


def _why(error: Exception) -> Reason:
    code = getattr(error, "value", None)
    return reason_of(code) if isinstance(code, int) else "error"


if __name__ == "__main__":
    run(open_library)
