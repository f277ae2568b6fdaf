"""Reads Moore Threads boards through mthreads-gmi.

With the IOMMU off the tool's total is wrong and its used memory exceeds it: such a pair is no reading.
"""

from __future__ import annotations

from typing import ClassVar

from effprof.hardware.probes.base import Support
from effprof.hardware.probes.tool import Command, ToolProbe
from effprof.hardware.probes.tool_table import DrawnColumns

COLUMNS = DrawnColumns(index="ID", name="Name", bus="PCIe", memory="Mem", utilization="%GPU", temperature="Temp")
READINGS = ("memory_used_bytes", "memory_total_bytes", "utilization_percent", "temperature_c")


class MooreThreadsProbe(ToolProbe):
    """Moore Threads GPUs of this node."""

    name = "moore_threads"
    vendor = "Moore Threads"
    torch_type = "musa"
    pci_vendor = "1ed5"
    nodes = ("/dev/mtgpu*",)
    commands = (Command(("mthreads-gmi",), COLUMNS.samples),)
    support: ClassVar = Support(
        family="Moore Threads MUSA GPU",
        source="mthreads-gmi",
        readings=dict.fromkeys(READINGS, "recorded"),
        unavailable={
            "power_w": "its table has no such column",
            "energy_j": "no counter in the tool",
            "sm_clock_mhz": "not in its table",
            "throttle": "not in its table",
        },
        evidence="MTT S4000 and S5000, mthreads-gmi 1.12.2 and 2.3.2",
    )


PROBE = MooreThreadsProbe
