"""A part of a chip has its own share of the peak, by the SMs that the driver lists for it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from effprof.errors import EffprofError
from effprof.hardware.catalog import UnknownAccelerator, lookup
from effprof.hardware.identity import DeviceIdentity
from effprof.hardware.peak import Peak, resolve_peak
from effprof.hardware.slices import mig_units, parse_virtual_gpu

SAMPLES = Path(__file__).resolve().parents[3].parent / "shared" / "hardware" / "samples"
MIB = 2**20


def recorded(file: str) -> str:
    path = SAMPLES / file
    if not path.exists():
        pytest.skip(f"recorded sample {file} is not beside this checkout")
    return path.read_text(encoding="utf-8")


def recorded_h100_slices() -> list[tuple[str, int, int]]:
    """Profile, SMs and MiB of each slice of a recorded H100, as `nvidia-smi -L` and `-q` print them."""
    profiles = re.findall(r"MIG (\S+)\s+Device", recorded("nvidia-smi_h100-mig_list.txt"))
    full = recorded("nvidia-smi_h100-mig_q_load.txt")
    units = re.findall(r"Multiprocessor count\s+: (\d+)", full)
    sizes = re.findall(r"Shared FB Memory Usage\n\s+Total\s+: (\d+) MiB", full)
    return [(name, int(unit), int(size)) for name, unit, size in zip(profiles, units, sizes, strict=True)]


def test_listed_units_are_those_of_a_recorded_h100() -> None:
    slices = recorded_h100_slices()
    assert len(slices) == 4
    for profile, units, _ in slices:
        assert mig_units("H100 SXM5 80GB", 132, profile) == units


def test_listed_units_are_those_of_a_recorded_a100() -> None:
    board = ElementTree.fromstring(recorded("nvidia-smi_a100-sxm4-mig_q-x.xml")).find("gpu")
    assert board is not None
    whole = lookup(board.findtext("product_name", ""))
    units = {int(found.text or 0) for found in board.iter("multiprocessor_count")}
    assert units == {mig_units(whole.name, whole.compute_units, "3g.20gb")} == {42}


def test_compute_instances_of_a_recorded_h200_have_their_slices_units() -> None:
    """Its first two devices share one 3g.71gb instance, as a third and two thirds of it."""
    rows = re.findall(
        r"^\|\s+0\s+(\d+)\s+(\d+)\s+\d+\s+\|.*?\|\s*(\d+)\s", recorded("nvidia-smi_h200-mig_table_load.txt"), re.M
    )
    shown = {(gpu_instance, compute_instance): int(units) for gpu_instance, compute_instance, units in rows}
    assert shown["2", "0"] == mig_units("H200 SXM 141GB", 132, "1c.3g.71gb")
    assert shown["2", "1"] == mig_units("H200 SXM 141GB", 132, "2c.3g.71gb")
    assert shown["3", "0"] == mig_units("H200 SXM 141GB", 132, "2g.35gb")


def test_the_peak_of_a_slice_goes_by_its_share_of_the_units() -> None:
    for profile, units, mebibytes in recorded_h100_slices():
        name = f"NVIDIA H100 80GB HBM3 MIG {profile}"
        # as torch reports it in the slice, and as a log or a person names it
        for device in (
            DeviceIdentity("cuda", 0, name, "NVIDIA", mebibytes * MIB, units, "MIG-1"),
            DeviceIdentity("cuda", 0, name, "NVIDIA"),
        ):
            peak = resolve_peak(device, {"bf16": 1.0})
            assert isinstance(peak, Peak)
            assert peak.flops_per_s == pytest.approx(989.4e12 * units / 132)
            assert f"MIG {profile}" in peak.source
        assert lookup(name, memory_bytes=mebibytes * MIB).memory_bytes == mebibytes * MIB


@pytest.mark.parametrize(
    ("chip", "units", "profile", "expected"),
    [
        ("A100 SXM4 80GB", 108, "7g.80gb", 98),  # 10 SMs of an A100 are in no slice
        ("H100 SXM5 80GB", 132, "7g.80gb", 132),
        ("H100 SXM5 80GB", 132, "1g.20gb", 26),
        ("H100 SXM5 80GB", 132, "1g.10gb+me", 16),
        ("H100 PCIe", 114, "1g.10gb", None),
        ("A30", 56, "1c.2g.12gb", None),
        ("V100 SXM2 16GB", 80, "1g.2gb", None),
    ],
)
def test_units_are_listed_or_unknown(chip: str, units: int, profile: str, expected: int | None) -> None:
    assert mig_units(chip, units, profile) == expected


def test_the_largest_profile_of_an_h100_is_the_chip() -> None:
    part = lookup("NVIDIA H100 80GB HBM3 MIG 7g.80gb", compute_units=132)
    assert part.peak_tflops["bf16"] == pytest.approx(989.4)


@pytest.mark.parametrize(
    ("name", "chip", "gigabytes", "profile"),
    [
        ("GRID A100DX-3-40C", "A100 SXM4 80GB", 40, "3g.40gb"),
        ("GRID A100-1-5CME", "A100 PCIe 40GB", 5, "1g.5gb"),
        ("NVIDIA H100XM-40C", "H100 SXM5 80GB", 40, None),
        ("NVIDIA A40-8Q", "A40", 8, None),
        ("L40S-48C", "L40S", 48, None),
    ],
)
def test_the_name_of_a_virtual_gpu_is_taken_apart(name: str, chip: str, gigabytes: int, profile: str | None) -> None:
    guest = parse_virtual_gpu(name)
    assert guest is not None
    assert (guest.chip, guest.memory_bytes, guest.profile) == (chip, gigabytes * 1e9, profile)
    assert lookup(chip).name == chip


@pytest.mark.parametrize(
    "name", ["NVIDIA A100-SXM4-80GB", "A100-80GB", "NVIDIA H20-3e", "Tesla V100-SXM2-16GB", "A100-4"]
)
def test_boards_are_no_virtual_gpus(name: str) -> None:
    assert parse_virtual_gpu(name) is None


def test_a_virtual_gpu_has_its_slices_share_or_the_chips_peak_in_turns() -> None:
    part = lookup("GRID A100DX-3-40C", memory_bytes=39_000 * MIB)
    assert part.peak_tflops["bf16"] == pytest.approx(312 * 42 / 108)
    assert part.memory_bytes == 39_000 * MIB
    turns = lookup("NVIDIA H100XM-40C", memory_bytes=38_000 * MIB, compute_units=132)
    assert turns.peak_tflops["bf16"] == 989.4
    assert turns.memory_bytes == 38_000 * MIB
    assert (part.basis, turns.basis) == ("scaled", "shared")
    assert "takes turns" in turns.notes


def test_a_virtual_gpu_of_an_unknown_chip_is_refused() -> None:
    with pytest.raises(EffprofError):
        lookup("GRID X99-8C")
    with pytest.raises(UnknownAccelerator, match="slice"):
        lookup("NVIDIA H100L-1-12C")
