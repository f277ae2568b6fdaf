"""Reads Cambricon MLU boards through cnmon."""

from __future__ import annotations

from typing import ClassVar

from effprof.hardware.probes.base import Support
from effprof.hardware.probes.tool import Command, ToolProbe
from effprof.hardware.probes.tool_table import DrawnColumns

COLUMNS = DrawnColumns(
    index="Card",
    name="Name",
    bus="Bus-Id",
    memory="Memory-Usage",
    power="Pwr:Usage/Cap",
    utilization="Util",
    temperature="Temp",
)
READINGS = (
    *("memory_used_bytes", "memory_total_bytes", "power_w", "power_limit_w"),
    *("utilization_percent", "temperature_c"),
)


class CambriconProbe(ToolProbe):
    """Cambricon MLUs of this node."""

    name = "cambricon"
    vendor = "Cambricon"
    torch_type = "mlu"
    pci_vendor = "cabc"
    nodes = ("/dev/cambricon_dev*",)
    commands = (Command(("cnmon",), COLUMNS.samples),)
    support: ClassVar = Support(
        family="Cambricon MLU",
        source="cnmon",
        readings=dict.fromkeys(READINGS, "recorded"),
        unavailable={
            "energy_j": "the library has a counter, cnmon's table does not show it",
            "sm_clock_mhz": "not in its table",
            "throttle": "not in its table",
        },
        evidence="MLU370-X8, cnmon 5.10.13",
    )


PROBE = CambriconProbe
