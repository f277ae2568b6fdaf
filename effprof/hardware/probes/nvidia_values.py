"""What NVML's numbers mean: its error codes, field ids, throttle bits and units, as pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from effprof.hardware.probes.base import Meaning, Reading, Reason

# nvmlReturn_t → why a value is missing; the rest is "error".
REASONS: dict[int, Reason] = {
    1: "device_lost",  # uninitialised: the library was shut down or the driver went away
    2: "not_supported",  # invalid argument: what MIG handles answer to board-level questions
    3: "not_supported",
    4: "no_permission",
    9: "no_driver",
    10: "timeout",
    12: "no_driver",  # no NVML library
    13: "not_supported",  # the driver is older than the call
    15: "device_lost",
    18: "no_driver",  # driver and library versions differ after an update
    21: "not_sampled_yet",
    25: "not_supported",
    26: "not_supported",
    27: "not_sampled_yet",
    28: "device_lost",
}
# Answers that will not change while the process lives, so that the question is not asked again.
PERMANENT_CODES = frozenset({2, 3, 4, 13, 25, 26})

# Bit of the clocks event reasons → name (nvml.h). Several can be set at once.
THROTTLE_BITS = {
    0x1: "idle",
    0x2: "application_clocks",
    0x4: "power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "power_brake",
    0x100: "display",
}
# Bits that mean something is wrong with the machine; a power cap is normal in dense training.
FAULT_MASK = 0x8 | 0x20 | 0x40 | 0x80

MEANINGS = {
    "power_w": Meaning("W", "board", "gauge", "1 s average where the driver has it, else momentary"),
    "power_instant_w": Meaning("W", "board", "gauge", "momentary; A100 and H100 sensors sample a quarter of the time"),
    "power_limit_w": Meaning("W", "board", "gauge", "enforced limit, out-of-band caps included"),
    "energy_j": Meaning("J", "board", "counter", "since the driver loaded"),
    "temperature_c": Meaning("C", "board", "gauge", "GPU die"),
    "memory_temperature_c": Meaning("C", "board", "gauge", "memory"),
    "sm_clock_mhz": Meaning("MHz", "board", "gauge", "momentary"),
    "sm_clock_max_mhz": Meaning("MHz", "board", "gauge", "highest that the board allows"),
    "memory_clock_mhz": Meaning("MHz", "board", "gauge", "momentary"),
    "utilization_percent": Meaning(
        "percent", "board", "gauge", "share of the last period with any kernel resident; says nothing about MFU"
    ),
    "memory_utilization_percent": Meaning("percent", "board", "gauge", "share of the last period with memory traffic"),
    "memory_used_bytes": Meaning("bytes", "board", "gauge", "all processes, without the driver's reserve where known"),
    "memory_reserved_bytes": Meaning("bytes", "board", "gauge", "driver and firmware"),
    "memory_total_bytes": Meaning("bytes", "board", "gauge", "as the driver reports it"),
    "throttle_mask": Meaning("bitmask", "board", "gauge", "clocks event reasons, momentary"),
    "throttle_power_cap_s": Meaning("s", "board", "counter", "clocks held down by the power limit"),
    "throttle_sync_boost_s": Meaning("s", "board", "counter", "held down by the slowest GPU of a sync group"),
    "throttle_sw_thermal_s": Meaning("s", "board", "counter", "above the operating temperature"),
    "throttle_hw_thermal_s": Meaning("s", "board", "counter", "clocks halved or worse by heat"),
    "throttle_power_brake_s": Meaning("s", "board", "counter", "external power brake"),
    "pcie_tx_bytes": Meaning("bytes", "board", "counter", "sent over PCIe; may wrap"),
    "pcie_rx_bytes": Meaning("bytes", "board", "counter", "received over PCIe; may wrap"),
    "nvlink_tx_bytes": Meaning("bytes", "board", "counter", "payload sent, sum of links"),
    "nvlink_rx_bytes": Meaning("bytes", "board", "counter", "payload received, sum of links"),
}


@dataclass(frozen=True)
class Field:
    """A field id of nvmlDeviceGetFieldValues, and the factor that brings its value to the reading's unit."""

    reading: str
    field_id: int
    factor: float
    scope_id: int = 0


_ALL_LINKS = 0xFFFFFFFF  # without it NVML answers for link 0 alone
FIELDS = (
    Field("power_w", 185, 1e-3),  # mW
    Field("power_instant_w", 186, 1e-3),
    Field("energy_j", 83, 1e-3),  # mJ
    Field("memory_temperature_c", 82, 1),
    Field("throttle_power_cap_s", 74, 1e-9),  # ns; nvidia-smi prints the same counters in µs
    Field("throttle_sync_boost_s", 76, 1e-9),
    Field("throttle_sw_thermal_s", 269, 1e-9),
    Field("throttle_hw_thermal_s", 270, 1e-9),
    Field("throttle_power_brake_s", 271, 1e-9),
    Field("pcie_tx_bytes", 197, 1),
    Field("pcie_rx_bytes", 198, 1),
    Field("nvlink_tx_bytes", 138, 1024, _ALL_LINKS),  # KiB
    Field("nvlink_rx_bytes", 139, 1024, _ALL_LINKS),
)
# nvmlValueType_t → member of the value's union
_UNION_MEMBERS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}


def reason_of(code: int) -> Reason:
    """Why there is no value, from an nvmlReturn_t that is not success."""
    return REASONS.get(code, "error")


def throttle_reasons(mask: int) -> list[str]:
    """Names of the bits set in a clocks event reasons mask; unknown bits keep their number."""
    names = [name for bit, name in THROTTLE_BITS.items() if mask & bit]
    unknown = mask & ~sum(THROTTLE_BITS)
    return [*names, f"0x{unknown:x}"] if unknown else names


def is_fault(mask: int) -> bool:
    """Whether the mask holds a reason that healthy hardware does not show: heat, power brake, hardware slowdown."""
    return bool(mask & FAULT_MASK)


def decode_field(entry: Any) -> tuple[float | int | None, Reason]:
    """The number in one nvmlFieldValue_t, or None and why: each entry of a successful call has its own status."""
    if entry.nvmlReturn != 0:
        return None, reason_of(entry.nvmlReturn)
    member = _UNION_MEMBERS.get(entry.valueType)
    if member is None:
        return None, "parse"
    value: float | int = getattr(entry.value, member)
    if entry.valueType in (2, 3) and value == 2**64 - 1:  # NVML's "no value"
        return None, "not_supported"
    return value, ""


def field_readings(entries: Iterable[Any], fields: Iterable[Field] = FIELDS) -> list[Reading]:
    """Readings of the entries that nvmlDeviceGetFieldValues filled for `fields`, in their order."""
    readings = []
    for field, entry in zip(fields, entries, strict=True):
        value, reason = decode_field(entry)
        scaled = None if value is None else (value * field.factor if field.factor != 1 else value)
        readings.append(make_reading(field.reading, scaled, reason))
    return readings


def make_reading(name: str, value: float | int | None, reason: Reason = "", *, of_slice: bool = False) -> Reading:
    """A reading with the unit, scope and kind that its name stands for."""
    meaning = MEANINGS[name]
    return Reading(name, value, meaning.unit, "slice" if of_slice else meaning.scope, meaning.kind, reason)


def normalize_bus_id(bus_id: str | bytes) -> str:
    """NVML's "00000000:83:00.0" as sysfs and torch write it, "0000:83:00.0"."""
    text = (bus_id.decode() if isinstance(bus_id, bytes) else bus_id).lower()
    domain, colon, rest = text.partition(":")
    return f"{int(domain, 16):04x}:{rest}" if colon else text
