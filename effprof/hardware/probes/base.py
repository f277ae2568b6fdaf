"""What a telemetry probe is, and the registry that finds the probes of the accelerators in this machine.

A probe is one file in this folder (or an entry point in the group `effprof.probes`) that names a class `PROBE`.
It is read by the sampler process at about 1 Hz, never by the training process, so it must import without torch.
Nothing raises on read: where there is no value the reading carries the reason. Its `vendor` is "host" where it reads
something that is no accelerator; else `effprof device` lists its devices, as torch's type `torch_type` where the class
has that attribute. Its `support` is its row in the table of supported chips (`effprof.hardware.probe_table`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Scope = Literal["host", "board", "die", "tile", "slice", "process"]
Kind = Literal["counter", "gauge"]
Reason = Literal[
    "",
    "not_supported",
    "no_permission",
    "no_tool",
    "no_driver",
    "timeout",
    "not_sampled_yet",
    "sliced",
    "parse",
    "device_lost",
    "error",
]

# What a reading was tested on: the chip; output of the vendor's own tool, recorded elsewhere; the documentation alone.
State = Literal["run", "recorded", "documented"]

ENTRY_POINT_GROUP = "effprof.probes"
PCI_DEVICES = Path("/sys/bus/pci/devices")


@dataclass(frozen=True)
class Meaning:
    """What a reading's number is: its unit, whose number it is, and whether it accumulates."""

    unit: str
    scope: Scope
    kind: Kind
    description: str = ""

    def as_dict(self) -> dict[str, str]:
        """The form the node log keeps."""
        return asdict(self)


@dataclass(frozen=True)
class Reading:
    """One value of one device at one time; `value` is None where `reason` says why it is missing."""

    name: str
    value: float | int | None
    unit: str
    scope: Scope
    kind: Kind
    reason: Reason = ""


@dataclass(frozen=True)
class Support:
    """What stands behind a probe's readings: its row in the table of supported chips, declared by the class.

    `readings` maps a reading's name to "run" (read on real hardware by this code), "recorded" (tested on output of the
    real tool) or "documented" (tested on input made after the documentation); `unavailable` maps a name to why the
    family has no such reading.
    """

    family: str  # "AMD Instinct and Radeon"
    source: str  # "amdsmi, else rocm-smi"
    readings: Mapping[str, State]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    evidence: str = ""  # what it ran on, or which chips and tool versions the recordings are of


@dataclass(frozen=True)
class ProbeDevice:
    """A device as its management library names it; joined to torch's by `uuid` or `pci_bus_id`, never by index."""

    key: str  # unique in the node, stable while the process lives: "GPU-<uuid>", "host", "pid-1234"
    name: str
    vendor: str
    uuid: str | None = None
    pci_bus_id: str | None = None  # "0000:3b:00.0", lower case
    memory_bytes: int | None = None
    compute_units: int | None = None
    power_limit_w: float | None = None
    parent: str | None = None  # key of the board a slice is cut from
    driver: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The form the node log keeps: what is known, without the empty fields."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@runtime_checkable
class Probe(Protocol):
    """Reads one accelerator family. Made by its class called with the process ids to watch."""

    name: str
    vendor: str
    reason: str  # why there are no devices; empty where there are

    def devices(self) -> list[ProbeDevice]:
        """The devices found, looked up once."""

    def describe(self) -> dict[str, dict[str, str]]:
        """Reading name → {unit, scope, kind, description}, for every reading that `read` can return."""

    def read(self) -> list[tuple[str, Reading]]:
        """One sample: (device key, reading) pairs. Never raises; a missing value has a reason."""

    def close(self) -> None:
        """Release the library; the probe reads nothing afterwards."""


class UnavailableProbe:
    """Stands for a probe that could not be loaded, so that the log says so."""

    def __init__(self, name: str, reason: str, vendor: str = "") -> None:
        self.name = name
        self.vendor = vendor
        self.reason = reason

    def devices(self) -> list[ProbeDevice]:
        return []

    def describe(self) -> dict[str, dict[str, str]]:
        return {}

    def read(self) -> list[tuple[str, Reading]]:
        return []

    def close(self) -> None:
        return None


@dataclass(frozen=True)
class PciFunction:
    """A function on the PCI bus, as sysfs lists it."""

    address: str  # "0000:3b:00.0"
    vendor: str  # "10de"
    device: str = ""  # "2330"
    kind: str = ""  # class with its prefix, "0x030200"


def pci_functions(root: Path = PCI_DEVICES) -> list[PciFunction]:
    """What the kernel lists on the PCI bus; empty where sysfs has no such folder."""

    def read(path: Path) -> str:
        try:
            return path.read_text(encoding="ascii").strip().lower()
        except (OSError, UnicodeDecodeError):
            return ""

    found = [
        PciFunction(
            entry.name,
            read(entry / "vendor").removeprefix("0x"),
            read(entry / "device").removeprefix("0x"),
            read(entry / "class"),
        )
        for entry in root.glob("*")
    ]
    return [each for each in found if each.vendor]


def pci_vendor_ids(root: Path = PCI_DEVICES) -> frozenset[str]:
    """Vendor ids of the PCI devices the kernel lists, as "10de"; empty where sysfs has none."""
    return frozenset(each.vendor for each in pci_functions(root))


def _own_factories() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and loader of each file of this folder; what it loads is None where the file holds no probe."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name != "base":
            path = f"{package}.{module.name}"
            yield module.name, lambda path=path: getattr(importlib.import_module(path), "PROBE", None)  # type: ignore[misc]


def _probe_factories() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and loader of each probe class: the files of this folder, then third parties' entry points."""
    yield from _own_factories()
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        yield entry.name, entry.load


def probe_classes() -> Iterator[tuple[str, Any]]:
    """Name and class of each probe of this package, found or not in this machine."""
    for name, load in _own_factories():
        if (probe_class := load()) is not None:
            yield name, probe_class


def available_probes(pids: Sequence[int] = ()) -> list[Probe]:
    """Probes of the hardware in this machine, and of the host itself.

    Args:
        pids: processes whose own memory and processor time should be read.

    Returns:
        One probe per family present; one that is present but unreadable has no devices and a `reason`.
    """
    vendors = pci_vendor_ids()
    probes: list[Probe] = []
    for name, load in _probe_factories():
        try:
            probe_class = load()
            if probe_class is not None and probe_class.is_present(vendors):
                probes.append(probe_class(pids))
        except Exception as error:  # a third party's probe must not take the sampler down
            probes.append(UnavailableProbe(name, f"{type(error).__name__}: {error}"))
    return probes
