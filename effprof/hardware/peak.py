"""The denominator of MFU: a device's dense peak for the dtypes its matmuls really run in, with its source."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from effprof.errors import EffprofError
from effprof.hardware.catalog import Accelerator, lookup
from effprof.hardware.ceiling import Ceiling, measure_gemm
from effprof.hardware.identity import DeviceIdentity

_ALIASES = {
    "float64": "fp64",
    "double": "fp64",
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e4m3fnuz": "fp8",
    "float8_e5m2": "fp8",
    "float8_e5m2fnuz": "fp8",
}
# Keys of the catalogue that serve a dtype, best first: a chip without tf32 runs such matmuls as plain fp32.
_RATES = {"fp64": ("fp64_tensor", "fp64"), "tf32": ("tf32", "fp32")}
_REMEDY = "pass peak_tflops= (--peak-tflops), the chip's dense peak in TFLOP/s"


@dataclass(frozen=True)
class Peak:
    """FLOP/s that one device could do at most, for the mix of dtypes given.

    `parts` maps each dtype to its share of the FLOPs and its own rate; `flops_per_s` is their FLOP-weighted
    harmonic mean. `kind` "measured_ceiling" is a rate measured on this device, not a datasheet's.
    """

    flops_per_s: float
    dtype: str
    source: str
    kind: Literal["datasheet", "given", "measured_ceiling"]
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    is_cached: bool = False  # a ceiling kept from an earlier measurement on this machine


def resolve_peak(
    device: DeviceIdentity, by_dtype: Mapping[str, float], *, peak_tflops: float | None = None
) -> Peak | str:
    """Resolve the peak of a device for matmuls whose FLOPs split over dtypes as `by_dtype` says.

    Args:
        device: who the device is.
        by_dtype: dtype ("bf16", "fp32", "tf32" where fp32 matmuls may use it, …) → share of the FLOPs.
        peak_tflops: the user's own dense peak in TFLOP/s; overrides everything.

    Returns:
        The peak, or one line that says why there is none and names the argument that supplies it.
    """
    shares = _normalize(by_dtype)
    if peak_tflops is not None:
        return _given(peak_tflops, shares)
    if not shares:
        return f"no peak: it is not known which dtypes the matmuls run in; {_REMEDY}"
    try:
        return _measured(shares) if device.type == "cpu" else _from_catalogue(device, shares)
    except EffprofError as error:
        return f"no peak: {error.message}; {_REMEDY}"


def harmonic_mean(parts: Mapping[str, Mapping[str, float]]) -> float:
    """FLOP/s of a mix: a share s at rate r takes s/r of the time of one FLOP, so the mix runs at 1 / Σ s/r."""
    return 1.0 / sum(part["share"] / part["flops_per_s"] for part in parts.values())


def _normalize(by_dtype: Mapping[str, float]) -> dict[str, float]:
    """Shares that sum to 1, largest first, under the catalogue's dtype names."""
    shares: dict[str, float] = {}
    for name, share in by_dtype.items():
        if share > 0 and math.isfinite(share):
            key = canonical_dtype(name)
            shares[key] = shares.get(key, 0.0) + share
    total = sum(shares.values())
    return dict(sorted(((key, share / total) for key, share in shares.items()), key=lambda pair: -pair[1]))


def canonical_dtype(name: str) -> str:
    """The catalogue's name of a dtype: `torch.bfloat16`, `bfloat16` and `bf16` are `bf16`; others stay as they are."""
    key = name.removeprefix("torch.")
    return _ALIASES.get(key, key)


def _given(peak_tflops: float, shares: Mapping[str, float]) -> Peak | str:
    if not (math.isfinite(peak_tflops) and peak_tflops > 0):
        return f"no peak: peak_tflops={peak_tflops} is not a positive number of TFLOP/s"
    rate = peak_tflops * 1e12
    parts = {dtype: {"share": share, "flops_per_s": rate} for dtype, share in shares.items()}
    return Peak(rate, _label(shares), "given as peak_tflops", "given", parts)


def _from_catalogue(device: DeviceIdentity, shares: Mapping[str, float]) -> Peak | str:
    row = lookup(
        device.name,
        memory_bytes=device.memory_bytes,
        compute_units=device.compute_units,
        power_limit_w=device.power_limit_w,
        vendor=device.vendor or None,
    )
    parts = {}
    for dtype, share in shares.items():
        rate = device_rate(row, dtype)
        if rate is None:
            known = ", ".join(row.peak_tflops) or "none"
            return f"no peak: no dense {dtype} rate is known of {row.vendor} {row.name} (known: {known}); {_REMEDY}"
        parts[dtype] = {"share": share, "flops_per_s": rate}
    per_device = f", one of {row.runtime_devices_per_chip} devices" if row.runtime_devices_per_chip > 1 else ""
    source = f"{row.vendor} {row.name}{per_device}, {row.basis}: {row.source}"
    return Peak(harmonic_mean(parts), _label(shares), source, "datasheet", parts)


def device_rate(row: Accelerator, dtype: str) -> float | None:
    """Dense FLOP/s of one device as the runtime shows it, for matmuls of a dtype; None where it is not known."""
    for key in _RATES.get(dtype, (dtype,)):
        if key in row.peak_tflops:
            return row.peak_tflops[key] * 1e12 / row.runtime_devices_per_chip
    return None


def _measured(shares: Mapping[str, float]) -> Peak:
    # a CPU has no tf32, the flag changes nothing there
    ceilings = {dtype: measure_gemm("cpu", "fp32" if dtype == "tf32" else dtype) for dtype in shares}
    parts = {dtype: {"share": share, "flops_per_s": _rate(ceilings[dtype])} for dtype, share in shares.items()}
    first = next(iter(ceilings.values()))
    shape = "x".join(str(size) for size in first.shape)
    when = f" on {time.strftime('%Y-%m-%d', time.gmtime(first.measured_s))}" if first.is_cached else ""
    source = f"measured here{when}: best of {first.repeats} GEMMs, {first.threads} threads, {shape}"
    is_cached = any(each.is_cached for each in ceilings.values())
    return Peak(harmonic_mean(parts), _label(shares), source, "measured_ceiling", parts, is_cached)


def _rate(ceiling: Ceiling) -> float:
    assert ceiling.flops_per_s is not None
    return ceiling.flops_per_s


def _label(shares: Mapping[str, float]) -> str:
    return "+".join(shares)
