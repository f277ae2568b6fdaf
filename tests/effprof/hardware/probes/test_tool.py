"""A vendor's tool is run without waiting, never twice at once; hanging, failing and torn output cost a reason."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from effprof.hardware.probes.base import Probe, Reading, probe_classes
from effprof.hardware.probes.metax import COLUMNS
from effprof.hardware.probes.tool import MEANINGS, Command, StreamRunner, ToolProbe, ToolRunner, complaint

TABLE = """\
+----------------------------------+--------------+------------+
| GPU         NAME                 | Bus-id       | GPU-Util   |
| Temp        Pwr:Usage/Cap        | Memory-Usage |            |
|==================================+==============+============|
| 0           MetaX C500           | 0000:0e:00.0 | {load}     |
| 35C         54W / 350W           | 1/2 MiB      |            |
+----------------------------------+--------------+------------+
"""


class AcmeProbe(ToolProbe):
    """A family whose tool the tests write."""

    name = "acme"
    vendor = "ACME"
    pci_vendor = "acde"
    commands: ClassVar = (Command(("acme-smi",), COLUMNS.samples),)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes `acme-smi` out of a shell script, and puts it on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def write(script: str) -> Path:
        path = tmp_path / "acme-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


def until_read(probe: Probe) -> list[tuple[str, Reading]]:
    for _ in range(300):
        if readings := probe.read():
            return readings
        time.sleep(0.02)
    raise AssertionError("the probe never answered")


def test_a_tool_is_read_again_and_again(install: Callable[[str], Path], tmp_path: Path) -> None:
    count = tmp_path / "count"
    install(
        f'echo x >> {count}; echo "$LC_ALL" >> {tmp_path}/locale\ncat <<END\n'
        + TABLE.format(load=f"$(wc -l < {count})%")
        + "END"
    )
    probe = AcmeProbe()
    assert probe.reason == ""
    (device,) = probe.devices()
    assert (device.key, device.name, device.memory_bytes, device.power_limit_w) == (
        *("0000:0e:00.0", "MetaX C500", 2 << 20, 350.0),
    )
    loads = []
    for _ in range(3):
        readings = {reading.name: reading for _, reading in until_read(probe)}
        assert readings["power_w"] == Reading("power_w", 54.0, "W", "board", "gauge")
        loads.append(readings["utilization_percent"].value)
    assert loads == [2.0, 3.0, 4.0]  # the first one was the discovery's
    assert set((tmp_path / "locale").read_text().split()) == {"C"}
    assert set(readings) == set(probe.describe())
    probe.close()
    assert probe.read() == []


def test_a_tool_that_hangs_is_killed_with_its_children(install: Callable[[str], Path], tmp_path: Path) -> None:
    path = install(f"sleep 60 & echo $! > {tmp_path}/child; wait")
    runner = ToolRunner([str(path)], deadline_s=0.4)
    began = time.monotonic()
    assert runner.wait() == (None, "timeout")
    assert time.monotonic() - began < 5
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the tool's child still runs")


def test_reading_never_waits_and_never_starts_a_second_one(install: Callable[[str], Path], tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    install(f"echo x >> {marks}; [ $(wc -l < {marks}) -gt 1 ] && sleep 60\ncat <<END\n{TABLE.format(load='1%')}END")
    probe = AcmeProbe()
    began = time.monotonic()
    for _ in range(20):
        assert probe.read() == []
    assert time.monotonic() - began < 1
    probe.close()
    assert len(marks.read_text().split()) <= 2


def test_a_sample_without_a_device_says_so(install: Callable[[str], Path], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    install(f"[ -e {gone} ] && echo device lost && exit 9\ncat <<END\n{TABLE.format(load='1%')}END")
    probe = AcmeProbe()
    until_read(probe)
    gone.touch()
    for _ in range(5):
        readings = dict(reading for reading in ((r.name, r) for _, r in until_read(probe)))
        if readings["power_w"].value is None:
            break
    assert readings["power_w"].reason == "parse"
    probe.close()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'dcmi module initialize failed. ret is -8005'; exit 0", "no_driver: acme-smi: dcmi module"),
        ("echo 'Permission denied' >&2; exit 1", "no_permission: acme-smi"),
        ("head -c 3000000 /dev/urandom", "parse: acme-smi"),
        ("exit 0", "parse: acme-smi: printed nothing"),
    ],
)
def test_a_tool_without_devices_gives_its_reason(install: Callable[[str], Path], script: str, reason: str) -> None:
    install(script)
    probe = AcmeProbe()
    assert probe.devices() == []
    assert probe.read() == []
    assert probe.describe() == {}
    if "urandom" in script:
        assert probe.reason
    else:
        assert probe.reason.startswith(reason)


def test_a_missing_tool_is_named() -> None:
    assert AcmeProbe().reason == "no_tool: none of acme-smi is installed"
    assert ToolRunner(["/nonexistent/acme-smi"]).wait() == (None, "no_tool")


def test_presence_goes_by_the_bus() -> None:
    assert AcmeProbe.is_present(frozenset({"acde"}))
    assert not AcmeProbe.is_present(frozenset({"10de"}))


def test_complaints_are_told_apart() -> None:
    assert complaint("\n Insufficient privilege\n", "x").startswith("no_permission: x: Insufficient privilege")
    assert complaint("segfault", "x") == "parse: x: segfault"


def test_a_stream_gives_its_last_whole_line() -> None:
    script = "import sys, time\nfor i in range(1000): print(i, flush=True); time.sleep(0.03)"
    runner = StreamRunner([sys.executable, "-c", script])
    seen = [runner.wait()[0]]
    for _ in range(300):
        time.sleep(0.1)
        seen += [runner.poll()[0]]
        if sum(text is not None for text in seen) == 4:
            break
    runner.stop()
    numbers = [int(text) for text in seen if text]
    assert len(numbers) == 4
    assert numbers == sorted(set(numbers))
    assert numbers[-1] - numbers[0] > 3  # lines between were passed over


def test_a_stream_that_falls_silent_times_out() -> None:
    runner = StreamRunner([sys.executable, "-c", "import time; time.sleep(60)"], deadline_s=0.3)
    assert runner.wait() == (None, "timeout")


@pytest.mark.parametrize("name", [name for name, each in probe_classes() if issubclass(each, ToolProbe)])
def test_every_tool_probe_is_absent_here_and_says_what_it_needs(name: str) -> None:
    probe_class = dict(probe_classes())[name]
    assert not probe_class.is_present(frozenset())
    probe = probe_class()
    assert isinstance(probe, Probe)
    assert probe.devices() == []
    assert probe.reason.startswith("no_tool")
    assert set(probe_class.meanings) <= set(probe_class.support.readings) <= set(MEANINGS)
