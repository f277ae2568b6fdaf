"""Identities come from what the runtime says, and vendors from the bus before the name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from effprof.hardware import identity
from effprof.hardware.host import cgroup_memory, core_count, cpu_model
from effprof.hardware.identity import DeviceIdentity, identify
from effprof.hardware.machine import accelerator_vendors, find_machine, may_have_accelerator


def test_the_processor_is_named_with_its_cores_and_memory() -> None:
    host = identify("cpu")
    assert (host.type, host.index) == ("cpu", 0)
    assert host.name == cpu_model()
    assert host.compute_units == core_count() == len(psutil.Process().cpu_affinity())
    assert host.memory_bytes is not None
    assert 0 < host.memory_bytes <= psutil.virtual_memory().total


def test_identifying_the_processor_needs_no_torch() -> None:
    code = (
        "import sys; from effprof.hardware.identity import identify; identify('cpu'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_runtimes_properties_become_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields torch 2.13's CUDA device properties have, with an H100's values."""
    import torch

    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        total_memory=85_027_979_264,
        multi_processor_count=132,
        uuid="01234567-89ab-cdef-0123-456789abcdef",
        pci_domain_id=0,
        pci_bus_id=0x3B,
        pci_device_id=0,
    )
    module = SimpleNamespace(get_device_properties=lambda index: properties)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert identify("cuda", 2) == DeviceIdentity(
        type="cuda",
        index=2,
        name="NVIDIA H100 80GB HBM3",
        vendor="NVIDIA",
        memory_bytes=85_027_979_264,
        compute_units=132,
        uuid="GPU-01234567-89ab-cdef-0123-456789abcdef",  # as the management library writes it
        pci_bus_id="0000:3b:00.0",
    )


def test_a_backend_that_tells_nothing_still_has_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    assert identify("npu", 1).as_dict() == {"type": "npu", "index": 1, "name": "npu", "vendor": "Huawei"}


def test_the_bus_tells_the_vendor_where_a_chip_answers_as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity.Path, "read_text", lambda self, encoding: "0x9999\n")
    assert identity._vendor("cuda", "MXC500", "0000:01:00.0") == "MetaX"


def test_accelerators_are_found_on_the_bus(tmp_path: Path) -> None:
    for address, pci_class, vendor in (
        ("0000:01:00.0", "0x030200", "0x10de"),  # 3D controller
        ("0000:02:00.0", "0x120000", "0x1da3"),  # processing accelerator
        ("0000:03:00.0", "0x020000", "0x19e5"),  # a network card
        ("0000:04:00.0", "0x030000", "0x1a03"),  # the server's management display
    ):
        (tmp_path / address).mkdir()
        (tmp_path / address / "class").write_text(pci_class + "\n")
        (tmp_path / address / "vendor").write_text(vendor + "\n")
    assert accelerator_vendors(tmp_path) == {"NVIDIA", "Intel"}


def test_a_machine_without_accelerator_is_not_an_error() -> None:
    machine = find_machine()
    if not may_have_accelerator():
        assert machine.devices == []
    assert all(isinstance(problem, str) for problem in machine.problems)


def test_libraries_that_hang_or_die_cost_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from effprof.hardware import machine

    monkeypatch.setattr(machine, "may_have_accelerator", lambda: True)
    assert "took over" in find_machine(timeout_s=0.001).problems[0]
    monkeypatch.setattr(machine.sys, "executable", "/bin/false")
    assert "failed" in find_machine().problems[0]


def test_the_child_that_asks_the_libraries_answers_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from effprof.hardware import machine

    monkeypatch.setattr(machine, "may_have_accelerator", lambda: True)
    found = find_machine()
    assert not [problem for problem in found.problems if "failed" in problem]


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    assert cgroup_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    assert cgroup_memory(tmp_path) == (500, 1000)
