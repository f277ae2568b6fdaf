"""Reads Baidu Kunlunxin boards through xpu_smi. Torch calls them "cuda", behind a shim that answers like NVML.

`xpu_smi -m` prints a row of blank-separated values per board, without a head: the address stands first, the quoted
model at 21. It gives watts on a P800 and milliwatts on a K200; no board idles below 2 W nor draws more than 2 kW, which
tells the two apart. The table that `xpu_smi` draws lacks power and temperature.
"""

from __future__ import annotations

import shlex
from typing import ClassVar

from effprof.hardware.probes.base import Support
from effprof.hardware.probes.tool import Command, Sample, ToolProbe
from effprof.hardware.probes.tool_text import MIB, bus_id, drawn_table, number, used_of_total

MOST_WATTS = 2000
# Positions of values in a row of `xpu_smi -m`.
_TEMPERATURE, _POWER, _CLOCK, _USED, _TOTAL, _UTILIZATION, _VERSION, _MODEL = 4, 8, 9, 17, 18, 19, 20, 21
_TABLE_READINGS = ("memory_used_bytes", "memory_total_bytes", "utilization_percent")


def rows(text: str) -> list[Sample]:
    """A sample per row of `xpu_smi -m`."""
    samples: list[Sample] = []
    for line in text.splitlines():
        try:
            cells = shlex.split(line)
        except ValueError:
            continue
        if len(cells) <= _MODEL or bus_id(cells[0]) is None:
            continue
        power = number(cells[_POWER])
        used, total = number(cells[_USED]), number(cells[_TOTAL])
        values = {
            "temperature_c": number(cells[_TEMPERATURE]),
            "power_w": power if power is None or power <= MOST_WATTS else power / 1000,
            "sm_clock_mhz": number(cells[_CLOCK]),
            "memory_used_bytes": None if used is None else used * MIB,
            "memory_total_bytes": None if total is None else total * MIB,
            "utilization_percent": number(cells[_UTILIZATION]),
        }
        address = bus_id(cells[0])
        samples.append(Sample(str(len(samples)), cells[_MODEL], values, pci_bus_id=address, driver=cells[_VERSION]))
    return samples


def table(text: str) -> list[Sample]:
    """A sample per board of the table that `xpu_smi` draws."""
    samples = []
    for row in drawn_table(text, "DevID", "PCI Addr", "Memory"):
        used, total = used_of_total(row.get("Memory"))
        values = {
            "memory_used_bytes": used,
            "memory_total_bytes": total,
            "utilization_percent": number(row.get("UseRate")),
        }
        samples.append(Sample(row["DevID"], row.get("Model", ""), values, pci_bus_id=bus_id(row["PCI Addr"])))
    return samples


class KunlunProbe(ToolProbe):
    """Kunlunxin boards of this node."""

    name = "kunlun"
    vendor = "Kunlunxin (Baidu)"
    torch_type = "cuda"
    pci_vendor = "1d22"
    nodes = ("/dev/xpuctrl",)
    commands = (
        Command(("xpu_smi", "-m"), rows),
        Command(("xpu-smi", "-m"), rows),
        Command(("xpu_smi",), table),
    )
    meanings: ClassVar = {"power_w": ("board", "two devices of a K200 show the one sensor of their board")}
    support: ClassVar = Support(
        family="Baidu Kunlunxin XPU",
        source="xpu_smi",
        readings={
            **dict.fromkeys(_TABLE_READINGS, "recorded"),
            **dict.fromkeys(("power_w", "temperature_c", "sm_clock_mhz"), "documented"),
        },
        unavailable={"energy_j": "no counter found", "throttle": "not printed"},
        evidence="R300, xpu_smi of driver 4.0; `xpu_smi -m` after descriptions of its columns",
    )


PROBE = KunlunProbe
