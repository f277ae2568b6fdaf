"""Who a device is, as torch sees it: enough to find it in the catalogue and to join it to its telemetry."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effprof.hardware.host import apple_chip, core_count, cpu_model, total_memory
from effprof.hardware.names import parse_name

# PCI vendor id → vendor in the catalogue. Several vendors' chips answer as torch's "cuda", only the bus tells.
PCI_VENDORS = {
    "10de": "NVIDIA",
    "1002": "AMD",
    "8086": "Intel",
    "1da3": "Intel",
    "1d94": "Hygon",
    "19e5": "Huawei",
    "1d22": "Kunlunxin (Baidu)",
    "cabc": "Cambricon",
    "1ed5": "Moore Threads",
    "9999": "MetaX",
    "1e3e": "Iluvatar",
    "1e36": "Enflame",
    "1ae0": "Google",
    "1d0f": "AWS",
}
_TORCH_VENDORS = {"xpu": "Intel", "hpu": "Intel", "npu": "Huawei", "mlu": "Cambricon", "musa": "Moore Threads"}
# Where torch's device properties keep the number of compute units, by backend.
_UNIT_FIELDS = ("multi_processor_count", "gpu_subslice_count", "cube_core_num")


@dataclass(frozen=True)
class DeviceIdentity:
    """One device of this process. Fields that the runtime does not give are None; `vendor` may be empty."""

    type: str
    index: int
    name: str
    vendor: str = ""
    memory_bytes: int | None = None
    compute_units: int | None = None
    uuid: str | None = None
    power_limit_w: float | None = None
    pci_bus_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What is known, for the log's header."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def identify(device_type: str, index: int = 0) -> DeviceIdentity:
    """Identify a device through torch alone, so that no management library is called in this process.

    Args:
        device_type: torch's name, e.g. "cuda", "cpu", "mps", "xpu".
        index: its index among the devices this process sees.
    """
    if device_type == "cpu":
        return identify_host()
    if device_type == "mps":
        name = apple_chip() or "Apple GPU"
        return DeviceIdentity("mps", 0, name, "Apple", total_memory())
    import torch

    module = torch.get_device_module(device_type)
    try:
        properties = module.get_device_properties(index)
    except (AttributeError, RuntimeError, AssertionError):
        properties = None
    name = str(getattr(properties, "name", "") or _device_name(module, index) or device_type)
    bus = _pci_bus_id(properties)
    return DeviceIdentity(
        type=device_type,
        index=index,
        name=name,
        vendor=_vendor(device_type, name, bus),
        memory_bytes=_positive(getattr(properties, "total_memory", None)),
        compute_units=next((n for n in (_positive(getattr(properties, f, None)) for f in _UNIT_FIELDS) if n), None),
        uuid=_uuid(properties),
        pci_bus_id=bus,
    )


def identify_host() -> DeviceIdentity:
    """The processor this process runs on, as a device of type "cpu". Needs no torch."""
    name = cpu_model()
    return DeviceIdentity("cpu", 0, name, parse_name(name).vendor or "", total_memory(), core_count())


def _device_name(module: Any, index: int) -> str | None:
    try:
        return str(module.get_device_name(index))
    except (AttributeError, RuntimeError, TypeError):
        return None


def _vendor(device_type: str, name: str, bus: str | None) -> str:
    if bus:
        try:
            pci_id = Path(f"/sys/bus/pci/devices/{bus}/vendor").read_text(encoding="ascii").strip().lower()
        except (OSError, UnicodeDecodeError):
            pci_id = ""
        if vendor := PCI_VENDORS.get(pci_id.removeprefix("0x")):
            return vendor
    return parse_name(name).vendor or _TORCH_VENDORS.get(device_type, "")


def _positive(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value > 0 else None


def _pci_bus_id(properties: Any) -> str | None:
    """The bus address as sysfs writes it, "0000:3b:00.0"; None on runtimes that do not tell."""
    parts = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if not all(isinstance(part, int) for part in parts):
        return None
    domain, bus, device = parts
    return f"{domain:04x}:{bus:02x}:{device:02x}.0"


def _uuid(properties: Any) -> str | None:
    """The device's UUID in the management library's form ("GPU-..."), to join telemetry by."""
    uuid = getattr(properties, "uuid", None)
    if uuid is None:
        return None
    text = str(uuid)
    return text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"
