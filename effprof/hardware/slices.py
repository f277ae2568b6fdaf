"""Parts of an NVIDIA chip: how many of its SMs a MIG profile has, and what a virtual GPU's name says of its chip.

A profile's figure before the "g" counts slices of the chip, but the SMs of a slice are not a seventh of the chip's: an
H100's 3g.40gb has 60 of 132, its 1g.10gb 16, its 1g.20gb 26. So the peak goes by the SMs that the driver lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effprof.hardware.catalog import Accelerator

# Chip (first word of its catalogue name) and its SMs → profile, or its part before the dot → SMs, as the driver prints
# them in `nvidia-smi mig -lgip` and `-lcip` ("1c": one slice of a compute instance). A100: public listings of a 40 GB
# board; NVIDIA's MIG user guide gives the 80 GB board the same fractions under names of twice the memory. H100:
# public listing of an 80 GB SXM board, and recorded `nvidia-smi -q`. H200: recorded `nvidia-smi`, where it shows them.
_MIG_UNITS: dict[tuple[str, int], dict[str, int]] = {
    ("A100", 108): {"1c": 14, "1g": 14, "2g": 28, "3g": 42, "4g": 56, "7g": 98},
    ("A800", 108): {"1c": 14, "1g": 14, "2g": 28, "3g": 42, "4g": 56, "7g": 98},
    ("A30", 56): {"1g": 14, "2g": 28, "4g": 56},
    ("H100", 132): {
        "1c": 16, "1g.10gb": 16, "1g.20gb": 26, "2g.20gb": 32, "3g.40gb": 60, "4g.40gb": 64, "7g.80gb": 132,
    },
    ("H200", 132): {"1c": 16, "1g.18gb": 16, "2g.35gb": 32},
}  # fmt: skip

# Board of a virtual GPU's name → the catalogue's, where the words differ (NVIDIA vGPU for Compute, tables of boards).
_VGPU_BOARDS = {
    "V100X": "V100 SXM2 16GB",
    "V100DX": "V100 SXM2 32GB",
    "A100": "A100 PCIe 40GB",
    "A100X": "A100 SXM4 40GB",
    "A100D": "A100 PCIe 80GB",
    "A100DX": "A100 SXM4 80GB",
    "A800D": "A800 PCIe 80GB",
    "A800DX": "A800 SXM4 80GB",
    "H100": "H100 PCIe",
    "H100XM": "H100 SXM5 80GB",
    "H100XS": "H100 SXM5 64GB",
    "H100L": "H100 NVL",
    "H800": "H800 PCIe",
    "H800XM": "H800 SXM5",
    "H200": "H200 NVL",
    "H200X": "H200 SXM 141GB",
    "H20X": "H20-3e 141GB",
}
# "GRID A100DX-3-40C", "NVIDIA L40S-24Q": board, MIG slices or none, GB, series (A, B, C, Q), media engines
_VGPU = re.compile(
    r"^(?:nvidia |grid )*(?P<board>[a-z]{1,3}\d+[a-z]*)-(?:(?P<slices>\d)-)?(?P<gb>\d+)[abcq](?P<media>me)?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class VirtualGpu:
    """What the name of a virtual GPU says: its chip, its memory, and the MIG profile it is made of.

    `profile` is None where guests take turns on the whole chip instead.
    """

    chip: str
    memory_bytes: float
    profile: str | None


def mig_units(chip: str, chip_units: int | None, profile: str) -> int | None:
    """SMs of a MIG device, or None where no listing of this chip is known.

    Args:
        chip: the chip's name in the catalogue, e.g. "H100 SXM5 80GB".
        chip_units: SMs of the whole chip, which tell boards of one name apart.
        profile: as the device's name has it: "3g.40gb", "1g.10gb+me", or "1c.3g.40gb" for a compute instance.
    """
    known = _MIG_UNITS.get((chip.partition(" ")[0], chip_units or 0), {})
    plain = profile.partition("+")[0]
    first = plain.partition(".")[0]
    if first.endswith("c"):
        return int(first[:-1]) * known["1c"] if "1c" in known else None
    return known.get(plain, known.get(first))


def parse_virtual_gpu(name: str) -> VirtualGpu | None:
    """Take a virtual GPU's name apart, as its guest sees it; None for any other name."""
    found = _VGPU.match(name.strip())
    if found is None:
        return None
    board, gigabytes = found["board"].upper(), int(found["gb"])
    profile = f"{found['slices']}g.{gigabytes}gb" if found["slices"] else None
    return VirtualGpu(_VGPU_BOARDS.get(board, board), gigabytes * 1e9, profile)


def scale(
    whole: Accelerator, units: int, label: str, memory_share: float | None, reported_bytes: float | None
) -> Accelerator:
    """The part of a chip that has `units` of its compute units: peaks in proportion, bandwidth by memory share."""
    assert whole.compute_units is not None
    share = units / whole.compute_units
    memory, bandwidth = whole.memory_bytes, whole.memory_bandwidth_bytes_per_s
    note = f"{label}: peaks of the {whole.name} scaled to {units} of {whole.compute_units} compute units"
    return replace(
        whole,
        name=f"{whole.name}, {label} ({units} of {whole.compute_units} compute units)",
        compute_units=units,
        peak_tflops=MappingProxyType({dtype: peak * share for dtype, peak in whole.peak_tflops.items()}),
        memory_bytes=round(reported_bytes or (memory or 0) * (memory_share or 0)) or None,
        memory_bandwidth_bytes_per_s=bandwidth * memory_share if bandwidth and memory_share else None,
        interconnect="",
        interconnect_bytes_per_s=None,
        tdp_w=None,
        basis="scaled",
        notes=f"{note}; {whole.notes}" if whole.notes else note,
    )
