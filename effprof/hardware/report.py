"""The answer of `effprof device`: one chip's peaks, memory and sources, and what was measured on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from effprof.errors import EffprofError
from effprof.hardware.catalog import PEAK_HINT, Accelerator, lookup
from effprof.hardware.ceiling import GEMM_DTYPES, measure_copy, measure_gemm
from effprof.hardware.ceiling_cache import cache_path, load
from effprof.hardware.identity import DeviceIdentity
from effprof.hardware.machine import Machine, find_machine, identify_host

SCHEMA = "effprof.device/1"
CPU_DTYPES = ("fp32", "bf16", "fp16", "fp64")


def describe_chip(row: Accelerator) -> dict[str, Any]:
    """A row of the catalogue as `effprof.device/1`."""
    warnings = [_warning("not_a_datasheet", _BASIS[row.basis])] if row.basis in _BASIS else []
    if not row.peak_tflops:
        warnings.append(_warning("no_peak", f"no dense peak of this chip is published; {PEAK_HINT}"))
    if row.runtime_devices_per_chip > 1:
        share = f"these figures are the chip's; the runtime shows it as {row.runtime_devices_per_chip} devices"
        warnings.append(_warning("several_devices_per_chip", share))
    return {
        "schema": SCHEMA,
        "name": row.name,
        "vendor": row.vendor,
        "architecture": row.architecture or None,
        "compute_capability": row.compute_capability or None,
        "compute_units": row.compute_units,
        "peak_tflops": dict(row.peak_tflops),
        "memory_bytes": row.memory_bytes,
        "memory_bandwidth_bytes_per_s": row.memory_bandwidth_bytes_per_s,
        "interconnect": row.interconnect or None,
        "interconnect_bytes_per_s": row.interconnect_bytes_per_s,
        "tdp_w": row.tdp_w,
        "runtime_names": list(row.patterns),
        "sources": [row.source],
        "basis": row.basis,
        "notes": row.notes,
        "warnings": warnings,
    }


_BASIS = {
    "derived": "some of these figures are derived, not printed by the vendor; the notes say how",
    "third party": "no vendor page was found for this row; the source is a third party's",
    "announced": "announced, not shipped: expect changes",
    "scaled": "a slice: the chip's peaks scaled by compute units",
    "shared": "a virtual GPU that takes turns on a chip: the peak is the whole chip's, others have their share of it",
}


def describe_named(
    name: str, *, memory_bytes: float | None, compute_units: int | None, power_limit_w: float | None
) -> dict[str, Any]:
    """A chip that need not be here. Raises UnknownAccelerator or AmbiguousAccelerator."""
    row = lookup(name, memory_bytes=memory_bytes, compute_units=compute_units, power_limit_w=power_limit_w)
    return describe_chip(row)


def describe_machine(measures: bool) -> dict[str, Any]:
    """This machine's first accelerator, or its processor where there is none; measured where asked for."""
    machine = find_machine()
    if machine.devices:
        report = _describe_accelerator(machine)
        first = machine.devices[0]
        if measures:
            measure_into(report, f"{first.type}:{first.index}" if first.type != "mps" else "mps", _measurable(report))
    else:
        report = _describe_processor(identify_host(), measures)
    report["warnings"] += [_warning("probe", problem) for problem in machine.problems]
    return report


def measure_into(report: dict[str, Any], device: str, dtypes: Sequence[str]) -> None:
    """Add `measured`: the best GEMM per dtype and the best copy on a device of this process."""
    gemms: dict[str, Any] = {}
    for dtype in dtypes:
        try:
            ceiling = measure_gemm(device, dtype, refresh=True)
        except EffprofError as error:
            gemms[dtype] = None
            report["warnings"].append(_warning("not_measured", f"{error.message}: {error.hint}".rstrip(": ")))
            continue
        gemms[dtype] = {"tflops": (ceiling.flops_per_s or 0.0) / 1e12} | {
            key: value
            for key, value in asdict(ceiling).items()
            if key in ("shape", "layout", "threads", "repeats", "seconds", "is_cached", "is_provisional")
        }
    try:
        copy = measure_copy(device).bytes_per_s
    except EffprofError as error:
        copy = None
        report["warnings"].append(_warning("not_measured", error.message))
    report["measured"] = {"gemm": gemms, "copy_bytes_per_s": copy}


def _describe_accelerator(machine: Machine) -> dict[str, Any]:
    first = machine.devices[0]
    try:
        row = lookup(
            first.name,
            memory_bytes=first.memory_bytes,
            compute_units=first.compute_units,
            power_limit_w=first.power_limit_w,
            vendor=first.vendor or None,
        )
    except EffprofError as error:
        report = _blank(first)
        report["warnings"].append(_warning("unknown_device", str(error).replace("\n", "; ")))
    else:
        report = describe_chip(row)
    report["devices"] = [device.as_dict() for device in machine.devices]
    if len({device.name for device in machine.devices}) > 1:
        names = ", ".join(sorted({device.name for device in machine.devices}))
        report["warnings"].append(
            _warning("mixed_devices", f"several kinds of device are here: {names}; shown: {first.name}")
        )
    return report


def _describe_processor(host: DeviceIdentity, measures: bool) -> dict[str, Any]:
    report = _blank(host)
    report["devices"] = [host.as_dict()]
    report["kind"] = "measured_ceiling"
    if not measures:
        return _with_kept_ceilings(report, host)
    measure_into(report, "cpu", CPU_DTYPES)
    measured = report["measured"]
    report["peak_tflops"] = {dtype: found["tflops"] if found else None for dtype, found in measured["gemm"].items()}
    report["memory_bandwidth_bytes_per_s"] = measured["copy_bytes_per_s"]
    threads = next((found["threads"] for found in measured["gemm"].values() if found), None)
    report["sources"] = [f"measured here: best of 5 matrix products per shape and one copy, {threads} threads"]
    return report


def _with_kept_ceilings(report: dict[str, Any], host: DeviceIdentity) -> dict[str, Any]:
    """Ceilings that were measured here earlier, under the number of threads that was measured last."""
    kept = sorted(load(host), key=lambda each: each.measured_s)
    threads = kept[-1].threads if kept else 0
    rates = {each.dtype: each.flops_per_s / 1e12 for each in kept if each.threads == threads}
    report["peak_tflops"] = {dtype: rates.get(dtype) for dtype in CPU_DTYPES}
    if rates:
        when = time.strftime("%Y-%m-%d", time.gmtime(kept[-1].measured_s))
        report["sources"] = [f"measured here until {when}, {threads} threads, kept in {cache_path()}"]
    if None in report["peak_tflops"].values():
        why = "a processor has no datasheet peak; its peak is the measured ceiling: run with --measure"
        report["warnings"].append(_warning("not_measured", why))
    return report


def _blank(device: DeviceIdentity) -> dict[str, Any]:
    """A device of which only the identity is known."""
    return {
        "schema": SCHEMA,
        "name": device.name,
        "vendor": device.vendor or None,
        "compute_units": device.compute_units,
        "peak_tflops": {},
        "memory_bytes": device.memory_bytes,
        "memory_bandwidth_bytes_per_s": None,
        "sources": [],
        "warnings": [],
    }


def _measurable(report: dict[str, Any]) -> list[str]:
    known = report["peak_tflops"]
    return [dtype for dtype in GEMM_DTYPES if dtype in known] or ["fp32", "fp16", "bf16"]


def _warning(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
