"""Reads AMD Instinct and Radeon boards through the library amdsmi, else rocm-smi, else amd-smi, which knows no names.

Torch calls them "cuda". Power is the socket's on MI300 and newer, an average on older boards. On a two-die board
(MI250X) the first die shows the power and energy of both.
"""

from __future__ import annotations

import re
from typing import ClassVar

from effprof.hardware.probes import rocm_json
from effprof.hardware.probes.base import Support
from effprof.hardware.probes.library_stream import library
from effprof.hardware.probes.tool import Command, Sample, ToolProbe
from effprof.hardware.probes.tool_text import number

_OPTIONS = (
    *("--showproductname", "--showuniqueid", "--showbus", "--showdriverversion", "--showmeminfo", "vram", "--showuse"),
    *("--showpower", "--showmaxpower", "--showenergycounter", "--showtemp", "--showclocks", "--json"),
)
_COLUMNS = {
    "POWER": "power_w",
    "POWER_USAGE": "power_w",
    "GPU_TEMP": "temperature_c",
    "GPU_T": "temperature_c",
    "MEM_TEMP": "memory_temperature_c",
    "MEM_T": "memory_temperature_c",
    "GFX_UTIL": "utilization_percent",
    "GFX%": "utilization_percent",
    "GFX_CLOCK": "sm_clock_mhz",
    "GFX_CLK": "sm_clock_mhz",
    "MEM_CLOCK": "memory_clock_mhz",
}
RECORDED = (
    *("memory_used_bytes", "memory_total_bytes", "power_w", "power_limit_w", "utilization_percent"),
    *("temperature_c", "memory_temperature_c", "sm_clock_mhz", "memory_clock_mhz"),
)


def monitor(text: str) -> list[Sample]:
    """A sample per row of `amd-smi monitor`: columns parted by two blanks, cells with their unit."""
    head: list[str] = []
    samples = []
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0] == "GPU" and len(cells) > 1:
            head = cells
        elif head and cells[0].isdigit():
            row = zip(head[1:], cells[1:], strict=False)
            values = {_COLUMNS[name]: number(cell) for name, cell in row if name in _COLUMNS}
            samples.append(Sample(cells[0], "AMD GPU", values))
    return samples


class AmdProbe(ToolProbe):
    """AMD GPUs of this node."""

    name = "amd"
    vendor = "AMD"
    torch_type = "cuda"
    pci_vendor = "1002"
    nodes = ()
    commands = (
        library("amd_library", "amdsmi"),
        Command(("rocm-smi", *_OPTIONS), rocm_json.samples),
        Command(("amd-smi", "monitor", "-putm"), monitor),
    )
    meanings: ClassVar = {
        "power_w": ("board", "of the socket on MI300 and newer, an average elsewhere; a two-die board shows it once"),
        "energy_j": ("board", "since the driver loaded; wrong or standing still on some boards; one die shows both"),
        "utilization_percent": ("board", "the firmware's busy share of the graphics engine; nothing about MFU"),
    }
    support: ClassVar = Support(
        family="AMD Instinct and Radeon",
        source="amdsmi, else rocm-smi, else amd-smi",
        readings={
            **dict.fromkeys(RECORDED, "recorded"),
            **dict.fromkeys(("energy_j", "sm_clock_max_mhz"), "documented"),
        },
        unavailable={"throttle": "violation status waits 100 ms a call, older status words were dropped as unreliable"},
        evidence=(
            "MI50, MI100, RX 6700 XT and RX 7800 XT by rocm-smi of ROCm 4 to 6.2, MI300X by amd-smi monitor; "
            "the library after its documentation"
        ),
    )


PROBE = AmdProbe
