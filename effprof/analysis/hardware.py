"""What the job ran on, and what the telemetry said about it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from effprof.analysis.model import DeviceGroup, Hardware, TelemetryFigures
from effprof.errors import EffprofError
from effprof.hardware.catalog import Accelerator, lookup
from effprof.runlog.reader import NodeLog, RankLog, Run


def describe_hardware(run: Run) -> Hardware:
    """Devices of the last attempt, and a summary of every telemetry reading of each node over all attempts."""
    ranks = run.attempts[-1].ranks
    facts = run.record.hardware
    row = _catalogue_row(ranks[0].header.device)
    chips = row.runtime_devices_per_chip if row else 1
    nodes: dict[int, list[NodeLog]] = {}
    for attempt in run.attempts:
        for log in attempt.nodes:
            nodes.setdefault(log.header.node, []).append(log)
    return Hardware(
        devices=_devices(ranks),
        hosts=sorted({rank.header.host for rank in ranks}),
        memory_bandwidth_bytes_per_s=_number(facts.get("memory_bandwidth_bytes_per_s"))
        or (row.memory_bandwidth_bytes_per_s / chips if row and row.memory_bandwidth_bytes_per_s else None),
        interconnect_bytes_per_s=_number(facts.get("interconnect_bytes_per_s"))
        or (row.interconnect_bytes_per_s / chips if row and row.interconnect_bytes_per_s else None),
        peak_parts=dict((facts.get("peak") or {}).get("parts") or {}),
        ceilings={str(dtype): rate for dtype, each in _ceilings(facts).items() if (rate := _number(each))},
        telemetry=[figures for number, logs in sorted(nodes.items()) for figures in _summarise(number, logs)],
    )


def _ceilings(facts: dict[str, Any]) -> dict[str, Any]:
    found = facts.get("ceilings")
    return found if isinstance(found, dict) else {}


def _catalogue_row(device: dict[str, Any]) -> Accelerator | None:
    """What the catalogue knows of a device; None for one that it does not know for sure."""
    if device.get("type") == "cpu" or not device.get("name"):
        return None
    try:
        return lookup(
            str(device["name"]),
            memory_bytes=device.get("memory_bytes"),
            compute_units=device.get("compute_units"),
            vendor=device.get("vendor"),
        )
    except EffprofError:
        return None


def _devices(ranks: list[RankLog]) -> list[DeviceGroup]:
    groups: dict[tuple[str, str], DeviceGroup] = {}
    for rank in ranks:
        device = rank.header.device
        key = (str(device.get("name") or device.get("type") or "unknown device"), str(device.get("type") or "unknown"))
        memory = _number(device.get("memory_bytes"))
        group = groups.setdefault(
            key, DeviceGroup(name=key[0], type=key[1], count=0, memory_bytes=int(memory) if memory else None)
        )
        group.count += 1
    return list(groups.values())


def _summarise(number: int, logs: list[NodeLog]) -> list[TelemetryFigures]:
    meaning: dict[str, dict[str, Any]] = {}
    values: dict[str, list[list[float]]] = {}
    missing: dict[str, str] = {}
    for log in logs:
        for probe in log.probes:
            meaning.update(probe.readings)
        series: dict[str, list[float]] = {}
        for sample in log.samples:
            missing.update(sample.missing)
            for name, value in sample.values.items():
                found = series.setdefault(name, [])
                if value is not None:
                    found.append(float(value))
        for name, found in series.items():
            values.setdefault(name, []).append(found)
    return [
        _figures(number, name, values.get(name, []), meaning, missing.get(name))
        for name in sorted(values.keys() | missing.keys())
    ]


def _figures(
    node: int, name: str, series: list[list[float]], meaning: dict[str, dict[str, Any]], reason: str | None
) -> TelemetryFigures:
    device, reading = split_reading(name, meaning)
    facts = meaning.get(reading, {})
    figures = TelemetryFigures(
        node=node,
        device=device,
        reading=reading,
        unit=str(facts.get("unit", "")),
        scope=str(facts.get("scope", "")),
        kind=str(facts.get("kind", "gauge")),
    )
    values = [value for part in series for value in part]
    figures.samples = len(values)
    if not values:
        figures.reason = reason or "not_sampled_yet"
    elif figures.kind == "counter":
        # a counter that falls was reset (driver reload, new process): only its rises are an amount
        rises = (max(0.0, after - before) for part in series for before, after in pairwise(part))
        figures.increase = sum(rises)
    else:
        figures.mean, figures.lowest, figures.highest = sum(values) / len(values), min(values), max(values)
    return figures


def split_reading(name: str, meaning: dict[str, Any]) -> tuple[str, str]:
    """`<device key>.<reading>`: either may hold dots, so a known reading decides."""
    for position, letter in enumerate(name):
        if letter == "." and name[position + 1 :] in meaning:
            return name[:position], name[position + 1 :]
    device, _, reading = name.rpartition(".")
    return device, reading


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value > 0 else None
