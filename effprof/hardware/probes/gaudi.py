"""Reads Intel Gaudi boards through the library pyhlml, else hl-smi: the list that a query gives, else its table.

A framework takes a pool at its start, so that used memory reads near full whatever the batch. Cells carry units even
where the query says otherwise. What is called a UUID names module and board, and is unique in the node.
"""

from __future__ import annotations

import csv
from typing import ClassVar

from effprof.hardware.probes.base import Support
from effprof.hardware.probes.library_stream import library
from effprof.hardware.probes.tool import Command, Sample, ToolProbe
from effprof.hardware.probes.tool_table import DrawnColumns
from effprof.hardware.probes.tool_text import bus_id, number, size

QUERY = (
    *("index", "uuid", "name", "driver_version", "bus_id", "memory.total", "memory.used", "power.draw", "power.max"),
    *("temperature.aip", "utilization.aip"),
)
# What older releases know: without the bus address.
OLDER_QUERY = (
    *("index", "uuid", "name", "driver_version", "memory.total", "memory.used", "memory.free", "power.draw"),
    *("power.max", "temperature.aip", "utilization.aip"),
)
COLUMNS = DrawnColumns(
    index="AIP",
    name="Name",
    bus="Bus-Id",
    memory="Memory-Usage",
    power="Pwr:Usage/Cap",
    utilization="AIP-Util",
    temperature="Temp",
)
READINGS = (
    *("memory_used_bytes", "memory_total_bytes", "power_w", "power_limit_w"),
    *("utilization_percent", "temperature_c"),
)
ONLY_LIBRARY = ("energy_j", "memory_temperature_c", "sm_clock_mhz", "sm_clock_max_mhz")


def listed(text: str, query: tuple[str, ...]) -> list[Sample]:
    """A sample per row of what `hl-smi -Q` prints without a head, in the order of the query."""
    samples = []
    for cells in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(cells) != len(query) or not cells[0].strip().isdigit():
            continue
        row = dict(zip(query, (cell.strip() for cell in cells), strict=True))
        values = {
            "memory_used_bytes": size(row["memory.used"]),
            "memory_total_bytes": size(row["memory.total"]),
            "power_w": number(row["power.draw"]),
            "power_limit_w": number(row["power.max"]),
            "utilization_percent": number(row["utilization.aip"]),
            "temperature_c": number(row["temperature.aip"]),
        }
        samples.append(
            Sample(
                index=row["index"],
                name=row["name"],
                values=values,
                uuid=row["uuid"],
                pci_bus_id=bus_id(row.get("bus_id")),
                driver=row["driver_version"],
            )
        )
    return samples


def _query(fields: tuple[str, ...]) -> Command:
    arguments = ("hl-smi", "-Q", ",".join(fields), "--format", "csv,noheader")
    return Command(arguments, lambda text: listed(text, fields))


class GaudiProbe(ToolProbe):
    """Gaudi accelerators of this node."""

    name = "gaudi"
    vendor = "Intel"
    torch_type = "hpu"
    pci_vendor = "1da3"
    nodes = ("/dev/accel/accel*", "/dev/hl[0-9]*")
    commands = (
        library("gaudi_library", "pyhlml"),
        _query(QUERY),
        _query(OLDER_QUERY),
        Command(("hl-smi",), COLUMNS.samples),
    )
    meanings: ClassVar = {
        "memory_used_bytes": ("board", "a framework's whole pool counts as used"),
        "utilization_percent": ("board", "share of the last second in which the processor was active"),
    }
    support: ClassVar = Support(
        family="Intel Gaudi",
        source="pyhlml, else hl-smi",
        readings={**dict.fromkeys(READINGS, "recorded"), **dict.fromkeys(ONLY_LIBRARY, "documented")},
        unavailable={"throttle": "not among the fields asked for"},
        evidence="Gaudi 2 and 3, hl-smi 1.22.1; the library after its documentation",
    )


PROBE = GaudiProbe
