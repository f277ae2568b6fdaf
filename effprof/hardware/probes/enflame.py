"""Reads Enflame GCU boards through efsmi.

Its table prints the memory's size and the share in use, and puts several values into a box without the two blanks that
part columns elsewhere: those are read by their units.
"""

from __future__ import annotations

import re
from typing import ClassVar

from effprof.hardware.probes.base import Support
from effprof.hardware.probes.tool import Command, Sample, ToolProbe
from effprof.hardware.probes.tool_text import bus_id, drawn_table, number, size

_WATTS = re.compile(r"(\d+)\s*W\s+(\d+)\s*W")
_DRIVER = re.compile(r"Driver Ver:\s*(\S+)")
READINGS = (
    *("memory_used_bytes", "memory_total_bytes", "power_w", "power_limit_w"),
    "temperature_c",
)


def samples(text: str) -> list[Sample]:
    """A sample per device of efsmi's table."""
    driver = _DRIVER.search(text)
    return [_sample(row, driver[1] if driver else None) for row in drawn_table(text, "NAME", "BUS-ID")]


def _sample(row: dict[str, str], driver: str | None) -> Sample:
    watts = _WATTS.search(row.get("Pwr(Usage/Cap)", ""))
    total, share = size(row.get("Mem")), number(row.get("DUsed"))
    return Sample(
        index=row.get("DEV", ""),
        name=row["NAME"],
        values={
            "temperature_c": number(row.get("TEMP")),
            "power_w": float(watts[1]) if watts else None,
            "power_limit_w": float(watts[2]) if watts else None,
            "memory_total_bytes": total,
            "memory_used_bytes": None if total is None or share is None else total * share / 100,
        },
        pci_bus_id=bus_id(_with_function(row.get("BUS-ID", ""))),
        driver=driver,
    )


def _with_function(text: str) -> str:
    """efsmi writes "00:01:00.0": domain, bus, device and function in two digits each."""
    return f"00{text}" if re.fullmatch(r"\s*\w{2}:\w{2}:\w{2}\.\d\s*", text) else text


class EnflameProbe(ToolProbe):
    """Enflame GCUs of this node."""

    name = "enflame"
    vendor = "Enflame"
    torch_type = "gcu"
    pci_vendor = "1e36"
    nodes = ("/dev/gcu*",)
    commands = (Command(("efsmi",), samples),)
    meanings: ClassVar = {"memory_used_bytes": ("board", "the printed share of the size, in steps of 0.1 %")}
    support: ClassVar = Support(
        family="Enflame GCU",
        source="efsmi",
        readings=dict.fromkeys(READINGS, "recorded"),
        unavailable={
            "utilization_percent": "its summary prints none",
            "energy_j": "no counter in the tool",
            "sm_clock_mhz": "not in its summary",
            "throttle": "not in its summary",
        },
        evidence="S60, efsmi 1.2.0.301",
    )


PROBE = EnflameProbe
