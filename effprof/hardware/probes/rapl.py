"""Reads the energy counters of processor packages and their memory from Linux's powercap tree (RAPL).

Sources: the kernel's Documentation/power/powercap/powercap.rst (zones, units, the counter's range). `energy_uj` is
readable by root alone since the side channel of 2020 (CVE-2020-8694): such a machine has the zones and the reason
`no_permission`. Virtual machines and containers usually have no zones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effprof.hardware.probes.base import Meaning, ProbeDevice, Reading, Reason, Support

POWERCAP = Path("/sys/class/powercap")

MEANINGS = {
    "cpu_energy_j": Meaning("J", "board", "counter", "one processor package, cores and caches, since the probe opened"),
    "dram_energy_j": Meaning("J", "board", "counter", "memory of one processor package, since the probe opened"),
    "platform_energy_j": Meaning(
        "J", "host", "counter", "the whole platform, packages included, where it has a sensor"
    ),
}
# Kind of zone, by its `name` without the package's number. Zones of cores and of graphics lie inside a package's.
_READING_OF = {"package": "cpu_energy_j", "dram": "dram_energy_j", "psys": "platform_energy_j"}


@dataclass
class Zone:
    """One counter of the tree; unwraps what the kernel's counter (µJ) restarts at `max_energy_range_uj`.

    A busy server's counter wraps every 11 to 22 minutes, so that one wrap between two reads is all there can be.
    """

    path: Path
    device: str
    reading: str
    last_uj: int | None = None
    total_uj: int = 0

    def read(self) -> tuple[float | None, Reason]:
        """Joules since the first read, or None and the reason."""
        try:
            now = int((self.path / "energy_uj").read_text(encoding="ascii"))
            before = now if self.last_uj is None else self.last_uj
            wrap = int((self.path / "max_energy_range_uj").read_text(encoding="ascii")) if now < before else 0
        except PermissionError:
            return None, "no_permission"
        except ValueError:
            return None, "parse"
        except OSError:
            return None, "device_lost"
        self.total_uj += now - before + wrap
        self.last_uj = now
        return self.total_uj / 1e6, ""


def find_zones(root: Path = POWERCAP) -> list[Zone]:
    """Zones of packages, their memory and the platform; empty where the kernel has none."""
    zones = []
    # "intel-rapl:0" is a package, "intel-rapl:0:1" a part of it; "intel-rapl-mmio:0" reads the same package again
    for path in sorted(root.glob("intel-rapl:*")):
        label = _label(path)
        reading = _READING_OF.get(label.partition("-")[0])
        if reading is None:
            continue
        owner = label if reading != "dram_energy_j" else _label(root / path.name.rpartition(":")[0])
        zones.append(Zone(path, "platform" if reading == "platform_energy_j" else owner, reading))
    return zones


def _label(path: Path) -> str:
    try:
        return (path / "name").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


class RaplProbe:
    """The processor packages' energy, on any Linux."""

    name = "rapl"
    vendor = "host"
    support: ClassVar = Support(
        family="CPU energy (RAPL)",
        source="powercap in sysfs",
        readings=dict.fromkeys(MEANINGS, "documented"),
        evidence="a tree of the kernel's layout, made by the test; the machine at hand was virtual and has no zones",
    )

    def __init__(self, pids: Sequence[int] = (), root: Path = POWERCAP) -> None:
        self._zones = find_zones(root)
        self._closed = False
        self.reason = "" if self._zones else f"not_supported: no RAPL zone in {root} (a virtual machine, a container)"
        for zone in self._zones:
            zone.read()

    @classmethod
    def is_present(cls, pci_vendors: frozenset[str]) -> bool:
        """Linux has the tree, or is worth a line that says it has not."""
        return sys.platform == "linux"

    def devices(self) -> list[ProbeDevice]:
        keys = dict.fromkeys(zone.device for zone in self._zones)
        return [ProbeDevice(key=key, name=f"processor {key}", vendor=self.vendor) for key in keys]

    def describe(self) -> dict[str, dict[str, str]]:
        return {zone.reading: MEANINGS[zone.reading].as_dict() for zone in self._zones}

    def read(self) -> list[tuple[str, Reading]]:
        if self._closed:
            return []
        sample = []
        for zone in self._zones:
            value, reason = zone.read()
            meaning = MEANINGS[zone.reading]
            sample.append(
                (zone.device, Reading(zone.reading, value, meaning.unit, meaning.scope, meaning.kind, reason))
            )
        return sample

    def close(self) -> None:
        self._closed = True


PROBE = RaplProbe
