"""Reads the power, clock and load of Apple's GPUs through powermetrics, which asks for root.

Memory is the host's (the probe `cpu` reads it); what torch holds is only known inside the training process.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import ClassVar

from effprof.hardware.host import apple_chip
from effprof.hardware.probes.base import Support
from effprof.hardware.probes.tool import Command, Sample, ToolProbe
from effprof.hardware.probes.tool_text import number

_POWER = ("powermetrics", "--samplers", "gpu_power,cpu_power", "-i", "1000", "-n", "1")
# Reading → pattern of the line, and the factor from its unit. "Package Power" became "Combined Power (CPU + GPU …)".
_LINES = {
    "power_w": (re.compile(r"^GPU Power: (.*)$", re.MULTILINE), 1e-3),
    "package_power_w": (re.compile(r"^(?:Package|Combined) Power[^:]*: (.*)$", re.MULTILINE), 1e-3),
    "sm_clock_mhz": (re.compile(r"^GPU (?:HW )?active frequency: (.*)$", re.MULTILINE), 1.0),
    "utilization_percent": (re.compile(r"^GPU (?:HW )?active residency: (.*)$", re.MULTILINE), 1.0),
}


def samples(text: str) -> list[Sample]:
    """The one GPU, where the output holds any of its lines."""
    values: dict[str, float | None] = {}
    for reading, (pattern, factor) in _LINES.items():
        if found := pattern.search(text):
            value = number(found[1])
            values[reading] = None if value is None else value * factor
    return [Sample("0", apple_chip() or "Apple GPU", values)] if values else []


class AppleProbe(ToolProbe):
    """The GPU of an Apple chip."""

    name = "apple"
    vendor = "Apple"
    torch_type = "mps"
    # without root sudo must not ask for a password: it would wait for a terminal
    commands = (Command(_POWER if hasattr(os, "geteuid") and os.geteuid() == 0 else ("sudo", "-n", *_POWER), samples),)
    meanings: ClassVar = {
        "power_w": ("die", "of the GPU alone, 1 s average"),
        "utilization_percent": ("die", "share of time active at any frequency"),
    }
    support: ClassVar = Support(
        family="Apple GPU (MPS)",
        source="powermetrics",
        readings={
            "power_w": "recorded",
            "package_power_w": "recorded",
            "sm_clock_mhz": "documented",
            "utilization_percent": "documented",
        },
        unavailable={
            "memory_used_bytes": "memory is unified: see the host's, and the allocator's in the account",
            "energy_j": "a private interface alone",
            "temperature_c": "not printed",
            "throttle": "not printed",
        },
        evidence="M1, macOS 12.6; the GPU's clock and residency after the tool's manual",
    )

    @classmethod
    def is_present(cls, pci_vendors: frozenset[str]) -> bool:
        """On macOS on Apple's own chips."""
        return sys.platform == "darwin" and platform.machine() == "arm64"


PROBE = AppleProbe
