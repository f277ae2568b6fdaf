"""Reads AWS Trainium and Inferentia through neuron-monitor, which prints a JSON line a period, and neuron-ls.

A device's utilisation is the mean of its cores', its memory what runtimes hold on them; cores count through the node.
While no runtime is attached there is nothing to read. Every group of the report has an `error` of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from effprof.hardware.probes.base import Reason, Support
from effprof.hardware.probes.tool import Command, Sample, ToolProbe, ToolRunner, find_tool
from effprof.hardware.probes.tool_text import bus_id

READINGS = ("utilization_percent", "flops_per_s", "memory_used_bytes", "memory_total_bytes")


def listed(text: str) -> dict[str, str]:
    """Device → PCI address, of what `neuron-ls --json-output` prints; empty where that is no list."""
    try:
        devices = json.loads(text[text.index("[") :])
        return {str(each["neuron_device"]): str(each.get("bdf", "")) for each in devices}
    except (ValueError, KeyError, TypeError):
        return {}


def reported(text: str) -> list[Sample]:
    """A sample per device of one line of neuron-monitor.

    Raises:
        ValueError: it is no JSON document.
    """
    report = json.loads(text)
    hardware = report["neuron_hardware_info"]
    cores, size = int(hardware["neuroncore_per_device_count"]), hardware.get("neuron_device_memory_size")
    runtimes = [each.get("report") or {} for each in report.get("neuron_runtime_data") or []]
    name = (report.get("instance_info") or {}).get("instance_type", "").partition(".")[0]
    return [
        _sample(device, name or str(hardware.get("neuron_device_type", "neuron")), cores, size, runtimes)
        for device in range(int(hardware["neuron_device_count"]))
    ]


def _sample(device: int, name: str, cores: int, size: Any, runtimes: list[Mapping[str, Any]]) -> Sample:
    own = {str(device * cores + core) for core in range(cores)}
    busy: list[float] = []
    flops: list[float] = []
    held: list[float] = []
    for runtime in runtimes:
        used = (runtime.get("neuroncore_counters") or {}).get("neuroncores_in_use") or {}
        for core in own & used.keys():
            busy.append(float(used[core].get("neuroncore_utilization") or 0))
            flops.append(float(used[core].get("flops") or 0))
        memory = (runtime.get("memory_used") or {}).get("neuron_runtime_used_bytes") or {}
        shares = (memory.get("usage_breakdown") or {}).get("neuroncore_memory_usage") or {}
        held += [float(sum(shares[core].values())) for core in own & shares.keys()]
    values = {
        "utilization_percent": sum(busy) / cores if busy else None,
        "flops_per_s": sum(flops) if flops else None,
        "memory_used_bytes": sum(held) if held else None,
        "memory_total_bytes": float(size) if size else None,
    }
    why: Reason = "not_supported" if runtimes else "not_sampled_yet"
    return Sample(
        index=str(device),
        name=name,
        values=values,
        compute_units=cores,
        reasons={reading: why for reading, value in values.items() if value is None},
    )


class NeuronProbe(ToolProbe):
    """Neuron devices of this node."""

    name = "neuron"
    vendor = "AWS"
    torch_type = "xla"
    # Amazon's number on the bus is that of its network cards and disks as well.
    nodes = ("/dev/neuron[0-9]*",)
    commands = (Command(("neuron-monitor",), reported, is_stream=True),)
    meanings: ClassVar = {
        "utilization_percent": ("board", "mean over the device's cores of their busy share of the tool's period"),
        "memory_used_bytes": ("board", "what runtimes hold on the device's cores"),
    }
    support: ClassVar = Support(
        family="AWS Trainium and Inferentia",
        source="neuron-monitor, neuron-ls",
        readings={**dict.fromkeys(READINGS, "documented"), "memory_total_bytes": "recorded"},
        unavailable={
            "power_w": "the kernel gives a share of the highest power a minute, no watts",
            "energy_j": "no counter",
            "sm_clock_mhz": "not shown to guests",
            "temperature_c": "not shown to guests",
            "throttle": "not shown to guests",
        },
        evidence="trn1 without a runtime; a runtime's report after its documentation",
    )

    def _find(self) -> None:
        self._addresses: dict[str, str] = {}
        if (path := find_tool("neuron-ls")) is not None:
            text, _ = ToolRunner([path, "--json-output"]).wait()
            self._addresses = listed(text or "")
        super()._find()

    def _identified(self, sample: Sample) -> Sample:
        address = bus_id(self._addresses.get(sample.index))
        return Sample(
            sample.index,
            sample.name,
            sample.values,
            pci_bus_id=address,
            compute_units=sample.compute_units,
            reasons=sample.reasons,
        )


PROBE = NeuronProbe
