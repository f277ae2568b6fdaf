"""The registry finds the probes of what is there, and a broken one costs a reason, not the sampler."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from effprof.hardware.probes import base
from effprof.hardware.probes.base import Probe, Reading, available_probes, pci_vendor_ids


def test_vendor_ids_come_from_the_bus(tmp_path: Path) -> None:
    for address, vendor in (("0000:01:00.0", "0x10DE"), ("0000:02:00.0", "0x8086")):
        (tmp_path / address).mkdir()
        (tmp_path / address / "vendor").write_text(vendor + "\n")
    (tmp_path / "0000:03:00.0").mkdir()
    assert pci_vendor_ids(tmp_path) == {"10de", "8086"}
    assert pci_vendor_ids(tmp_path / "nothing") == frozenset()


def test_every_probe_says_what_its_readings_mean() -> None:
    probes = available_probes()
    assert "cpu" in [probe.name for probe in probes]
    for probe in probes:
        assert isinstance(probe, Probe)
        meanings = probe.describe()
        keys = {device.key for device in probe.devices()}
        for key, reading in probe.read():
            assert key in keys
            assert meanings[reading.name]["unit"] == reading.unit
            assert meanings[reading.name]["kind"] == reading.kind
            assert (reading.value is None) == bool(reading.reason)
        probe.close()
        assert probe.read() == []


def test_probes_import_without_torch() -> None:
    code = (
        "import sys; from effprof.hardware.probes.base import available_probes\n"
        "for probe in available_probes(): probe.read()\n"
        "assert not {'torch', 'numpy', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Thermometer:
    """A third party's probe."""

    name = "thermometer"
    vendor = "ACME"
    reason = ""

    def __init__(self, pids: object) -> None:
        pass

    @classmethod
    def is_present(cls, pci_vendors: frozenset[str]) -> bool:
        return True

    def devices(self) -> list[base.ProbeDevice]:
        return [base.ProbeDevice("room", "server room", "ACME")]

    def describe(self) -> dict[str, dict[str, str]]:
        return {"air_c": base.Meaning("C", "host", "gauge").as_dict()}

    def read(self) -> list[tuple[str, Reading]]:
        return [("room", Reading("air_c", 21.5, "C", "host", "gauge"))]

    def close(self) -> None:
        pass


def test_third_parties_add_probes_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    good = EntryPoint("thermometer", f"{__name__}:Thermometer", base.ENTRY_POINT_GROUP)
    broken = EntryPoint("broken", "no_such_module:Probe", base.ENTRY_POINT_GROUP)
    monkeypatch.setattr(base, "entry_points", lambda group: [good, broken])
    monkeypatch.setattr(EntryPoint, "load", lambda self: Thermometer if self is good else __import__("no_such_module"))
    probes = {probe.name: probe for probe in available_probes()}
    assert probes["thermometer"].read()[0][1].value == 21.5
    assert "no_such_module" in probes["broken"].reason
    assert probes["broken"].devices() == []
    assert probes["broken"].read() == []
