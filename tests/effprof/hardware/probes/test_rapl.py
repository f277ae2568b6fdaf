"""Energy of processor packages from a powercap tree as the kernel lays it out, and from this machine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from effprof.hardware.probes.base import Reading
from effprof.hardware.probes.rapl import POWERCAP, RaplProbe, find_zones

RANGE_UJ = 262_143_328_850  # what a Xeon's package counter wraps at


def make_zone(root: Path, name: str, label: str, microjoules: int) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two packages with memory and cores, the platform, and the second way to read package 0."""
    (tmp_path / "intel-rapl").mkdir()  # the control type's own folder
    for name, label, microjoules in (
        ("intel-rapl:0", "package-0", RANGE_UJ - 1_000_000),
        ("intel-rapl:0:0", "core", 5),
        ("intel-rapl:0:1", "dram", 7_000_000),
        ("intel-rapl:1", "package-1", 0),
        ("intel-rapl:2", "psys", 100),
        ("intel-rapl-mmio:0", "package-0", 3),
    ):
        make_zone(tmp_path, name, label, microjoules)
    return tmp_path


def values(probe: RaplProbe) -> dict[tuple[str, str], float | int | None]:
    return {(key, reading.name): reading.value for key, reading in probe.read()}


def reasons(probe: RaplProbe) -> set[str]:
    return {reading.reason for _, reading in probe.read()}


def test_packages_memory_and_platform_are_apart_and_unwrapped(tree: Path) -> None:
    probe = RaplProbe(root=tree)
    assert [device.key for device in probe.devices()] == ["package-0", "package-1", "platform"]
    assert set(values(probe).values()) == {0.0}
    (tree / "intel-rapl:0" / "energy_uj").write_text("500000\n")  # 1 J to the end of the range, half a joule on
    (tree / "intel-rapl:0:1" / "energy_uj").write_text("9000000\n")
    (tree / "intel-rapl:1" / "energy_uj").write_text("300000\n")
    assert values(probe) == {
        ("package-0", "cpu_energy_j"): pytest.approx(1.5),
        ("package-0", "dram_energy_j"): pytest.approx(2.0),
        ("package-1", "cpu_energy_j"): pytest.approx(0.3),
        ("platform", "platform_energy_j"): 0.0,
    }
    assert set(probe.describe()) == {"cpu_energy_j", "dram_energy_j", "platform_energy_j"}
    probe.close()
    assert probe.read() == []


def test_a_counter_that_cannot_be_read_has_a_reason(tree: Path) -> None:
    counter = tree / "intel-rapl:1" / "energy_uj"
    probe = RaplProbe(root=tree)
    counter.write_text("garbage")
    assert reasons(probe) == {"", "parse"}
    counter.unlink()
    assert reasons(probe) == {"", "device_lost"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_counters_of_root_alone_say_so(tree: Path) -> None:
    for counter in tree.glob("*/energy_uj"):
        counter.chmod(0)
    assert reasons(RaplProbe(root=tree)) == {"no_permission"}


def test_the_kernels_refusal_is_a_permission(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, too: what opening a file of mode 0400 raises for everybody else."""
    probe = RaplProbe(root=tree)

    def refuse(path: Path, encoding: str | None = None) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    ((_, first), *_) = probe.read()
    assert first == Reading("cpu_energy_j", None, "J", "board", "counter", "no_permission")


def test_a_machine_without_zones_says_so(tmp_path: Path) -> None:
    probe = RaplProbe(root=tmp_path / "nothing")
    assert probe.reason.startswith("not_supported")
    assert probe.devices() == probe.read() == []


def test_this_machine_is_read_or_says_why_not() -> None:
    probe = RaplProbe()
    assert bool(probe.reason) == (not find_zones(POWERCAP))
    for _, reading in probe.read():
        assert (reading.value is None) == bool(reading.reason)
        assert reading.reason in ("", "no_permission")
