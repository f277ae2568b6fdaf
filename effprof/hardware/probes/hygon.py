"""Reads Hygon DCUs through hy-smi, or rocm-smi of older DTK releases. Torch calls them "cuda", like AMD's.

The table is a fallback for releases whose JSON lacks a reading's key. `DCU use (%)` is a momentary share of the compute
units, no share of time: to be compared with itself only. Names are masked ("DCU xxxx"), the device id tells the model.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import ClassVar

from effprof.hardware.probes import rocm_json
from effprof.hardware.probes.base import Support
from effprof.hardware.probes.tool import Command, Sample, ToolProbe
from effprof.hardware.probes.tool_text import number

_OPTIONS = ("--showproductname", "--showuniqueid", "--showbus", "--showmeminfo", "vram", "--showuse", "--showpower")
_MODELS = {"0x6210": "K100_AI"}
_ROW = re.compile(r"^\s*\d+(?:\s+\S+){6,}\s*$")
READINGS = (
    *("memory_used_bytes", "memory_total_bytes", "power_w"),
    *("utilization_percent", "temperature_c", "memory_temperature_c"),
)


def listed(text: str) -> list[Sample]:
    """A sample per card of the JSON document.

    Raises:
        ValueError: there is none.
    """
    document = json.loads(text[text.index("{") :])
    ids = [str(card.get("Device ID", "")).lower() for card in document.values() if isinstance(card, dict)]
    found = rocm_json.samples(text)
    return [
        dataclasses.replace(sample, name=_MODELS.get(device, sample.name))
        for sample, device in zip(found, ids, strict=False)
    ]


def table(text: str) -> list[Sample]:
    """A sample per row of the table without bars: columns are parted by blanks, and their number grew."""
    head: list[str] = []
    samples = []
    for line in text.splitlines():
        words = line.split()
        if "AvgPwr" in words:
            head = words
        elif head and _ROW.match(line):
            row = dict(zip(head, words, strict=False))
            values = {
                "temperature_c": number(row.get("Temp")),
                "power_w": number(row.get("AvgPwr")),
                "power_limit_w": number(row.get("PwrCap")),
                "utilization_percent": number(row.get("DCU%") or row.get("HCU%")),
            }
            samples.append(Sample(words[0], "DCU", values))
    return samples


class HygonProbe(ToolProbe):
    """Hygon DCUs of this node."""

    name = "hygon"
    vendor = "Hygon"
    torch_type = "cuda"
    pci_vendor = "1d94"
    nodes = ("/sys/module/hycu", "/sys/module/hydcu")
    commands = (
        Command(("hy-smi", *_OPTIONS, "--showtemp", "--json"), listed),
        Command(("rocm-smi", *_OPTIONS, "--showtemp", "--json"), listed),
        Command(("hy-smi",), table),
        Command(("rocm-smi",), table),
    )
    meanings: ClassVar = {"utilization_percent": ("board", "momentary share of the compute units, no share of time")}
    support: ClassVar = Support(
        family="Hygon DCU",
        source="hy-smi, else rocm-smi of DTK",
        readings={**dict.fromkeys(READINGS, "recorded"), "power_limit_w": "recorded"},
        unavailable={
            "energy_j": "the library has a counter, the tool prints none",
            "sm_clock_mhz": "not among what was recorded",
            "throttle": "not found in the tool",
        },
        evidence="K100_AI by DTK 24.04.3, and the table of an older release",
    )


PROBE = HygonProbe
