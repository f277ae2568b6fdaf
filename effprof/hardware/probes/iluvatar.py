"""Reads Iluvatar boards through ixsmi. Their library exports NVML's names and torch calls them "cuda": not NVIDIA's."""

from __future__ import annotations

from typing import ClassVar

from effprof.hardware.probes.base import Support
from effprof.hardware.probes.tool import Command, ToolProbe
from effprof.hardware.probes.tool_table import DrawnColumns

COLUMNS = DrawnColumns(
    index="GPU",
    name="Name",
    bus="Bus-Id",
    memory="Memory-Usage",
    power="Pwr:Usage/Cap",
    utilization="GPU-Util",
    temperature="Temp",
    clock="Clock-SM",
    memory_clock="Clock-Mem",
)
READINGS = (
    *("memory_used_bytes", "memory_total_bytes", "power_w", "power_limit_w"),
    *("utilization_percent", "temperature_c", "sm_clock_mhz", "memory_clock_mhz"),
)


class IluvatarProbe(ToolProbe):
    """Iluvatar CoreX GPUs of this node."""

    name = "iluvatar"
    vendor = "Iluvatar"
    torch_type = "cuda"
    pci_vendor = "1e3e"
    nodes = ("/dev/iluvatar*",)
    commands = (Command(("ixsmi",), COLUMNS.samples),)
    support: ClassVar = Support(
        family="Iluvatar CoreX GPU",
        source="ixsmi",
        readings=dict.fromkeys(READINGS, "recorded"),
        unavailable={"energy_j": "ixsmi's table has no counter", "throttle": "not in its table"},
        evidence="BI-V100, ixsmi 3.1.1",
    )


PROBE = IluvatarProbe
