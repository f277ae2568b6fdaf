"""Reads Intel data-centre GPUs through xpu-smi: who they are by `discovery`, readings by `dump`.

Kunlunxin's tool goes by the same name, so a GPU of Intel's has to be on the bus; one on bus 0 is a processor's own
graphics and counts for nothing. The first interval of a dump holds N/A, the last row of each device counts. Utilisation
reads N/A on Max 1550 even under load. Without rights sensors read 0.0: such a temperature is no reading.
"""

from __future__ import annotations

import re
from typing import ClassVar

from effprof.hardware.probes.base import Support, pci_functions
from effprof.hardware.probes.tool import Command, Sample, ToolProbe, ToolRunner, find_tool
from effprof.hardware.probes.tool_text import bus_id, csv_rows, number, size

METRICS = "0,1,2,3,4,8,18"
_DISPLAY_CLASS = "0x03"
# Reading → start of the column's name, whose unit is in brackets.
_COLUMNS = {
    "utilization_percent": "GPU Utilization",
    "power_w": "GPU Power",
    "sm_clock_mhz": "GPU Frequency",
    "temperature_c": "GPU Core Temperature",
    "memory_temperature_c": "GPU Memory Temperature",
    "energy_j": "GPU Energy Consumed (J)",
    "memory_used_bytes": "GPU Memory Used",
}
_FIELD = re.compile(r"^\|\s*(?P<index>\d*)\s*\|\s*(?P<name>[\w ]+?):\s*(?P<value>.*?)\s*\|\s*$")


def discovered(text: str) -> dict[str, dict[str, str]]:
    """Device id → field → value of the table that `xpu-smi discovery` draws."""
    devices: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if found := _FIELD.match(line):
            if found["index"]:
                fields = devices.setdefault(found["index"], {})
            fields[found["name"]] = found["value"]
    return devices


def dumped(text: str) -> list[Sample]:
    """A sample per device of what `xpu-smi dump` prints, from its last row."""
    last = {row["DeviceId"]: row for row in csv_rows(text, "DeviceId") if row.get("DeviceId", "").isdigit()}
    return [Sample(index, "Intel GPU", _values(row)) for index, row in last.items()]


def _values(row: dict[str, str]) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for reading, start in _COLUMNS.items():
        for column, cell in row.items():
            if column.startswith(start):
                value = size(cell) if reading == "memory_used_bytes" else number(cell)
                is_unread = reading in ("temperature_c", "memory_temperature_c") and value == 0
                values[reading] = None if is_unread else value
    return values


class IntelXpuProbe(ToolProbe):
    """Intel Max, Flex and Arc GPUs of this node."""

    name = "intel_xpu"
    vendor = "Intel"
    torch_type = "xpu"
    commands = (Command(("xpu-smi", "dump", "-d", "-1", "-m", METRICS, "-i", "1", "-n", "2"), dumped),)
    meanings: ClassVar = {
        "utilization_percent": ("board", "mean of the tiles; needs rights, N/A on Max 1550"),
        "energy_j": ("board", "since the driver loaded"),
    }
    support: ClassVar = Support(
        family="Intel data-centre GPU",
        source="xpu-smi 1",
        readings={
            **dict.fromkeys(_COLUMNS, "recorded"),
            "energy_j": "documented",
        },
        unavailable={"throttle": "not among the dump's metrics", "memory_total_bytes": "not among the dump's metrics"},
        evidence="Max 1550 by xpu-smi 1.2.39, Arc A770; energy after the documentation",
    )

    @classmethod
    def is_present(cls, pci_vendors: frozenset[str]) -> bool:
        """By a display controller of Intel's that sits on a bus of its own."""
        return any(
            each.vendor == "8086" and each.kind.startswith(_DISPLAY_CLASS) and not each.address.startswith("0000:00:")
            for each in pci_functions()
        )

    def _find(self) -> None:
        self._known: dict[str, dict[str, str]] = {}
        if (path := find_tool("xpu-smi")) is not None:
            text, _ = ToolRunner([path, "discovery"]).wait()
            self._known = discovered(text or "")
        super()._find()

    def _identified(self, sample: Sample) -> Sample:
        return identified(sample, self._known.get(sample.index, {}))


def identified(sample: Sample, fields: dict[str, str]) -> Sample:
    """The sample with what `discovery` says of its device."""
    return Sample(
        sample.index,
        fields.get("Device Name", sample.name).replace("(R)", ""),
        sample.values,
        uuid=fields.get("SOC UUID") or fields.get("UUID"),
        pci_bus_id=bus_id(fields.get("PCI BDF Address")),
    )


PROBE = IntelXpuProbe
