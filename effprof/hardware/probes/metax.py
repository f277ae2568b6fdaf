"""Reads MetaX boards through mx-smi. Torch calls them "cuda"; the bus tells them from NVIDIA's."""

from __future__ import annotations

from typing import ClassVar

from effprof.hardware.probes.base import Support
from effprof.hardware.probes.tool import Command, ToolProbe
from effprof.hardware.probes.tool_table import DrawnColumns

COLUMNS = DrawnColumns(
    index="GPU",
    name="NAME",
    bus="Bus-id",
    memory="Memory-Usage",
    power="Pwr:Usage/Cap",
    utilization="GPU-Util",
    temperature="Temp",
)
READINGS = (
    *("memory_used_bytes", "memory_total_bytes", "power_w", "power_limit_w"),
    *("utilization_percent", "temperature_c"),
)


class MetaxProbe(ToolProbe):
    """MetaX GPUs of this node."""

    name = "metax"
    vendor = "MetaX"
    torch_type = "cuda"
    pci_vendor = "9999"
    nodes = ("/dev/mxcd",)
    commands = (Command(("mx-smi",), COLUMNS.samples),)
    support: ClassVar = Support(
        family="MetaX GPU",
        source="mx-smi",
        readings=dict.fromkeys(READINGS, "recorded"),
        unavailable={
            "energy_j": "mx-smi prints no counter",
            "sm_clock_mhz": "not in its table",
            "throttle": "not in its table",
        },
        evidence="C500, mx-smi 2.1.12",
    )


PROBE = MetaxProbe
