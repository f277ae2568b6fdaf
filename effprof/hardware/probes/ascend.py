"""Reads Huawei Ascend chips through `npu-smi info`.

Chips with their own HBM show it in a column of its own and read 0 / 0 in "Memory-Usage"; those without (310P) have that
one alone. Two dies of a card share the power that is printed beside the first. A soft slice (HAMi) has the NPU id 32768
and no power; what its total says is the slice.
"""

from __future__ import annotations

import re
from glob import glob
from typing import ClassVar

from effprof.hardware.probes.base import Reason, Support
from effprof.hardware.probes.tool import Command, Sample, ToolProbe
from effprof.hardware.probes.tool_text import bus_id, drawn_table, number, used_of_total

SLICE_ID = "32768"
_VERSION = re.compile(r"Version:\s*(\S+)")
READINGS = (
    *("memory_used_bytes", "memory_total_bytes", "power_w"),
    *("utilization_percent", "temperature_c"),
)


def samples(text: str) -> list[Sample]:
    """A sample per chip of the table of `npu-smi info`."""
    version = _VERSION.search(text)
    return [_sample(row, version[1] if version else None) for row in drawn_table(text, "NPU", "Name", "Bus-Id")]


def _sample(row: dict[str, str], version: str | None) -> Sample:
    used, total = used_of_total(row.get("HBM-Usage(MB)"))
    if total is None:
        used, total = used_of_total(row.get("Memory-Usage(MB)"))
    values = {
        "power_w": number(row.get("Power(W)")),
        "temperature_c": number(row.get("Temp(C)")),
        "utilization_percent": number(row.get("AICore(%)")),
        "memory_used_bytes": used,
        "memory_total_bytes": total,
    }
    why: Reason = "sliced" if row["NPU"] == SLICE_ID else "not_supported" if "Bus-Id" in row else "parse"
    return Sample(
        index=f"{row['NPU']}-{row.get('Chip', '0')}",
        name=row["Name"],
        values=values,
        pci_bus_id=bus_id(row.get("Bus-Id")),
        driver=version,
        reasons={name: why for name, value in values.items() if value is None},
    )


class AscendProbe(ToolProbe):
    """Ascend chips of this node."""

    name = "ascend"
    vendor = "Huawei"
    torch_type = "npu"
    commands = (Command(("npu-smi", "info"), samples),)
    meanings: ClassVar = {
        "power_w": ("board", "of the card where two dies share one (shown with the first), of the chip elsewhere"),
        "utilization_percent": ("die", "share of cycles in which AI cores had work; unreadable while profiling is on"),
        "memory_used_bytes": ("die", "all processes; HBM holds some 3.3 GB when idle"),
        "memory_total_bytes": ("die", "HBM, else the chip's DDR"),
    }
    support: ClassVar = Support(
        family="Huawei Ascend",
        source="npu-smi",
        readings=dict.fromkeys(READINGS, "recorded"),
        unavailable={
            "energy_j": "no counter in the tool or its library",
            "sm_clock_mhz": "in `-t common` alone, a command per card",
            "throttle": "no such field",
        },
        evidence="310, 310P3 and a HAMi slice of it, 910A, 910B2C, 910B3 and 910C, npu-smi 20.2 to 26.0",
    )

    @classmethod
    def is_present(cls, pci_vendors: frozenset[str]) -> bool:
        """By the device files: Huawei's network cards share the vendor's number on the bus."""
        return bool(glob("/dev/davinci[0-9]*"))


PROBE = AscendProbe
