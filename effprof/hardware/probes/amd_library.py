"""Asks AMD's library, the Python package amdsmi: what rocm-smi prints, and the energy counter with its resolution.

amdsmi must be at least as new as the ROCm that is installed. Power is `current_socket_power` on MI300 and newer and
`average_socket_power` before: exactly one of them is a number. Memory is called MB and is MiB, the power cap is in µW,
and the counter times its resolution is µJ (include/amd_smi/amdsmi.h of ROCm 6 and 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from effprof.hardware.probes.base import Reason
from effprof.hardware.probes.library_stream import NoValue, ask, run
from effprof.hardware.probes.tool import Sample

# amdsmi_status_t → why a value is missing
REASONS: dict[int, Reason] = {
    2: "not_supported",
    3: "not_supported",
    10: "no_permission",
    32: "no_driver",
    34: "no_driver",
    40: "not_sampled_yet",
}
_HOTTEST = ("HOTSPOT", "JUNCTION", "EDGE")


def open_library() -> Callable[[], list[Sample]]:
    """Opens amdsmi; returns what reads all boards.

    Raises:
        Exception: the package or the driver is missing, or they do not fit together.
    """
    import amdsmi

    amdsmi.amdsmi_init()
    handles = list(amdsmi.amdsmi_get_processor_handles())
    if not handles:
        raise RuntimeError("no devices")
    return lambda: [_sample(amdsmi, index, handle) for index, handle in enumerate(handles)]


def _sample(smi: Any, index: int, handle: Any) -> Sample:
    def first(table: Mapping[str, Any], *names: str) -> float:
        for name in names:
            value = table.get(name)
            if isinstance(value, (int, float)):
                return float(value)
        raise NoValue("not_supported")  # "N/A"

    def energy() -> float:
        counted = smi.amdsmi_get_energy_count(handle)
        # `power` is what the key was called before ROCm 6.2.1
        microjoules = first(counted, "energy_accumulator", "power") * first(counted, "counter_resolution")
        if not microjoules:
            raise NoValue("not_supported")  # boards without a counter answer 0
        return microjoules / 1e6

    def celsius(*kinds: str) -> float:
        kind, metric = smi.AmdSmiTemperatureType, smi.AmdSmiTemperatureMetric
        for place, name in enumerate(kinds):
            try:
                return float(smi.amdsmi_get_temp_metric(handle, getattr(kind, name), metric.CURRENT))
            except Exception:
                if place + 1 == len(kinds):
                    raise
        raise NoValue("not_supported")

    def clock(kind: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = smi.amdsmi_get_clock_info(handle, getattr(smi.AmdSmiClkType, kind))
        return found

    def facts(function: str) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = getattr(smi, function)(handle)
        except Exception:
            return {}
        return found

    asic, driver = facts("amdsmi_get_gpu_asic_info"), facts("amdsmi_get_gpu_driver_info")
    answers = ask(
        {
            "memory_used_bytes": lambda: first(smi.amdsmi_get_gpu_vram_usage(handle), "vram_used") * 2**20,
            "memory_total_bytes": lambda: first(smi.amdsmi_get_gpu_vram_usage(handle), "vram_total") * 2**20,
            "power_w": lambda: first(
                smi.amdsmi_get_power_info(handle), "current_socket_power", "average_socket_power", "socket_power"
            ),
            "power_limit_w": lambda: first(smi.amdsmi_get_power_cap_info(handle), "power_cap") / 1e6,
            "energy_j": energy,
            "utilization_percent": lambda: first(smi.amdsmi_get_gpu_activity(handle), "gfx_activity"),
            "temperature_c": lambda: celsius(*_HOTTEST),
            "memory_temperature_c": lambda: celsius("VRAM"),
            "sm_clock_mhz": lambda: first(clock("GFX"), "clk", "cur_clk"),
            "sm_clock_max_mhz": lambda: first(clock("GFX"), "max_clk"),
            "memory_clock_mhz": lambda: first(clock("MEM"), "clk", "cur_clk"),
        },
        lambda error: REASONS.get(getattr(error, "err_code", 0), "error"),
    )
    units = asic.get("num_compute_units")
    return Sample(
        index=str(index),
        name=str(asic.get("market_name") or "AMD GPU"),
        uuid=_text(smi, "amdsmi_get_gpu_device_uuid", handle),
        pci_bus_id=(_text(smi, "amdsmi_get_gpu_device_bdf", handle) or "").lower() or None,
        driver=str(driver["driver_version"]) if driver.get("driver_version") else None,
        compute_units=units if isinstance(units, int) else None,
        **answers,
    )


def _text(smi: Any, function: str, handle: Any) -> str | None:
    try:
        return str(getattr(smi, function)(handle)) or None
    except Exception:
        return None


if __name__ == "__main__":
    run(open_library)
