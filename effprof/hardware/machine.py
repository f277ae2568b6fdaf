"""Which accelerators this machine has, asked in a process of its own: a vendor's library may hang or crash."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from effprof.hardware.identity import PCI_VENDORS, DeviceIdentity, identify, identify_host
from effprof.hardware.probes.base import PCI_DEVICES

# PCI base classes of displays, co-processors and processing accelerators.
_ACCELERATOR_CLASSES = ("0x03", "0x0b40", "0x12")
# Device nodes of accelerators that no PCI bus lists (Jetson, WSL, containers without sysfs).
_DEVICE_NODES = ("nvidiactl", "kfd", "dxg", "davinci0", "accel", "neuron0", "nvhost-gpu", "xpu0")
_TIMEOUT_S = 90.0  # importing torch from a cold network disk takes most of a minute


@dataclass(frozen=True)
class Machine:
    """The accelerators found, and in one line each what stood in the way of finding more."""

    devices: list[DeviceIdentity] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def accelerator_vendors(root: Path = PCI_DEVICES) -> set[str]:
    """Vendors of the accelerators that the kernel lists on the PCI bus."""
    found = set()
    for entry in root.glob("*/class"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if entry.read_text(encoding="ascii").strip().startswith(_ACCELERATOR_CLASSES):
                pci_id = (entry.parent / "vendor").read_text(encoding="ascii").strip().lower().removeprefix("0x")
                if pci_id in PCI_VENDORS:
                    found.add(PCI_VENDORS[pci_id])
    return found


def may_have_accelerator() -> bool:
    """Whether it is worth asking: a device on the bus or a device node, or a Mac."""
    if platform.system() != "Linux":
        return True
    return bool(accelerator_vendors()) or any(Path("/dev", node).exists() for node in _DEVICE_NODES)


def find_machine(timeout_s: float = _TIMEOUT_S) -> Machine:
    """Find the accelerators: through torch where it is installed, else through the management library.

    Everything runs in a child process, so that a library that hangs or crashes costs a line and not the command.
    """
    if not may_have_accelerator():
        return Machine()
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Machine(problems=[f"asking the accelerator's libraries took over {timeout_s:.0f} s"])
    lines = child.stdout.strip().splitlines()
    try:  # libraries print to stdout too: the answer is the last line
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        why = child.stderr.strip().splitlines()
        return Machine(problems=[f"asking the accelerator's libraries failed: {why[-1] if why else child.returncode}"])
    return Machine([DeviceIdentity(**device) for device in answer["devices"]], answer["problems"])


def _ask_libraries() -> Machine:
    problems: list[str] = []
    devices: list[DeviceIdentity] = []
    if importlib.util.find_spec("torch") is not None:
        try:
            devices = _through_torch()
        except Exception as error:
            problems.append(f"torch: {type(error).__name__}: {error}".splitlines()[0])
    if devices:
        return Machine(devices, problems)
    from effprof.hardware.probes.base import available_probes

    for probe in available_probes():
        if probe.vendor == "host":
            continue
        if probe.reason:
            problems.append(f"{probe.name}: {probe.reason}")
        boards = [device for device in probe.devices() if device.parent is None]
        devices += [
            DeviceIdentity(
                type=getattr(probe, "torch_type", probe.name),
                index=index,
                name=board.name,
                vendor=board.vendor,
                memory_bytes=board.memory_bytes,
                compute_units=board.compute_units,
                uuid=board.uuid,
                power_limit_w=board.power_limit_w,
                pci_bus_id=board.pci_bus_id,
            )
            for index, board in enumerate(boards)
        ]
    return Machine(devices, problems)


def _through_torch() -> list[DeviceIdentity]:
    import torch

    kinds = [kind for kind in ("cuda", "xpu", "npu", "hpu", "mlu", "musa", "mps") if _is_available(kind)]
    if not kinds:
        return []
    count = 1 if kinds[0] == "mps" else torch.get_device_module(kinds[0]).device_count()
    return [identify(kinds[0], index) for index in range(count)]


def _is_available(kind: str) -> bool:
    import torch

    if kind == "mps":
        return torch.backends.mps.is_available()
    try:
        return bool(torch.get_device_module(kind).is_available())
    except (RuntimeError, AttributeError):
        return False


def _main() -> None:
    machine = _ask_libraries()
    print(json.dumps({"devices": [device.as_dict() for device in machine.devices], "problems": machine.problems}))


__all__ = ["Machine", "accelerator_vendors", "find_machine", "identify_host", "may_have_accelerator"]

if __name__ == "__main__":
    _main()
