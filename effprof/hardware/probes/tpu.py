"""Reads Google TPUs through tpu-info. Its figures come from the training process, so there are none before that runs.

tpu-info tries the library in a process of its own, since importing it can abort; another reason to run it as a command.
Power, energy, clocks and temperature are not shown to guests.
"""

from __future__ import annotations

import re
from glob import glob
from typing import ClassVar

from effprof.hardware.probes.base import Reason, Support, pci_functions
from effprof.hardware.probes.tool import Command, Sample, ToolProbe
from effprof.hardware.probes.tool_text import drawn_table, number, used_of_total

# Device ids of the chips; Google's number on the bus is that of its virtual network card as well.
_CHIPS = frozenset({"0027", "005e", "0062", "0063", "006f", "0076"})
_TABLES = (("Chip", "HBM Usage (GiB)", "Duty cycle"), ("Device", "Memory usage", "Duty cycle"))
READINGS = ("memory_used_bytes", "memory_total_bytes", "utilization_percent", "tensorcore_utilization_percent")


def samples(text: str) -> list[Sample]:
    """A sample per chip of tpu-info's tables; without the figures where no workload runs."""
    chips = drawn_table(text, "Chip", "Type", "Devices")
    usage: dict[str, tuple[str, str]] = {}
    for index, memory, duty in _TABLES:
        usage |= {row[index]: (row[memory], row[duty]) for row in drawn_table(text, index, memory, duty)}
    cores = [number(row["TensorCore Utilization"]) for row in drawn_table(text, "Core ID", "TensorCore Utilization")]
    return [
        _sample(chip["Type"], str(index), usage.get(str(index)), _own(cores, index, len(chips)))
        for index, chip in enumerate(chips)
    ]


def _own(cores: list[float | None], chip: int, chips: int) -> float | None:
    """Mean over a chip's cores, which are numbered through the host."""
    each, rest = divmod(len(cores), chips)
    own = [core for core in cores[chip * each : (chip + 1) * each] if core is not None]
    return sum(own) / len(own) if own and not rest else None


def _sample(kind: str, index: str, usage: tuple[str, str] | None, core: float | None) -> Sample:
    used, total = used_of_total(usage[0]) if usage else (None, None)
    values = {
        "memory_used_bytes": used,
        "memory_total_bytes": total,
        "utilization_percent": number(usage[1]) if usage else None,
        "tensorcore_utilization_percent": core,
    }
    why: Reason = "not_sampled_yet" if usage is None else "not_supported"
    name = re.sub(r"\s+chip$", "", kind)
    return Sample(index, name, values, reasons={each: why for each, value in values.items() if value is None})


class TpuProbe(ToolProbe):
    """TPU chips of this host."""

    name = "tpu"
    vendor = "Google"
    torch_type = "xla"
    commands = (Command(("tpu-info",), samples),)
    meanings: ClassVar = {
        "utilization_percent": ("board", "duty cycle: share of time with work on the chip; nothing about MFU"),
        "memory_used_bytes": ("board", "what the runtime of this host has allocated"),
    }
    support: ClassVar = Support(
        family="Google TPU",
        source="tpu-info",
        readings=dict.fromkeys(READINGS, "recorded"),
        unavailable={
            "power_w": "not shown to guests",
            "energy_j": "not shown to guests",
            "sm_clock_mhz": "not shown to guests",
            "temperature_c": "not shown to guests",
            "throttle": "not shown to guests",
        },
        evidence="v4 and v6e, from the tool's documentation",
    )

    @classmethod
    def is_present(cls, pci_vendors: frozenset[str]) -> bool:
        """By the chips on the bus, else by the device files of a container's."""
        on_bus = any(each.vendor == "1ae0" and each.device in _CHIPS for each in pci_functions())
        return on_bus or ("1ae0" in pci_vendors and bool(glob("/dev/accel[0-9]*") + glob("/dev/vfio/[0-9]*")))


PROBE = TpuProbe
