"""The answer of `effprof device` as text for a terminal."""

from __future__ import annotations

from typing import Any


def render(report: dict[str, Any]) -> str:
    """An `effprof.device/1` report as a few lines and a table."""
    size = f"{report['memory_bytes'] / 1e9:.4g} GB" if report["memory_bytes"] else ""
    units = f"{report['compute_units']} compute units" if report.get("compute_units") else ""
    title = [report["name"], report["vendor"], report.get("architecture"), units, size]
    lines = ["  ·  ".join(part for part in title if part), "", *_rates(report), ""]
    lines += [f"{label:<18} {text}" for label, text in _facts(report)]
    return "\n".join(lines).strip()


def _rates(report: dict[str, Any]) -> list[str]:
    from tabulate import tabulate

    measured = report.get("measured", {}).get("gemm", {})
    is_ceiling = report.get("kind") == "measured_ceiling"  # a processor: what was measured is its peak
    columns = ["dtype"] if is_ceiling else ["dtype", "dense peak TFLOP/s"]
    columns += ["measured TFLOP/s"] if measured or is_ceiling else []
    columns += ["of peak"] if measured and not is_ceiling else []
    columns += ["best shape"] if measured else []
    rows = []
    for dtype in dict.fromkeys([*report["peak_tflops"], *measured]):
        peak, found = report["peak_tflops"].get(dtype), measured.get(dtype) or {}
        rate = found.get("tflops") or (peak if is_ceiling else None)  # of a processor, one kept from earlier
        cells = {
            "dtype": dtype,
            "dense peak TFLOP/s": "" if peak is None else f"{peak:,.6g}",
            "measured TFLOP/s": "-" if rate is None else f"{rate:,.4g}",
            "of peak": f"{rate / peak:.1%}" if rate and peak else "",
            "best shape": "x".join(str(size) for size in found.get("shape", ())),
        }
        rows.append([cells[column] for column in columns])
    if not rows:
        return ["no dense peak is known of this chip"]
    align = ["left"] + ["right"] * (len(columns) - 1)
    return [tabulate(rows, headers=columns, disable_numparse=True, colalign=align)]


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    is_ceiling = report.get("kind") == "measured_ceiling"
    if report["memory_bandwidth_bytes_per_s"] and not is_ceiling:
        facts.append(("memory bandwidth", f"{report['memory_bandwidth_bytes_per_s'] / 1e9:,.4g} GB/s"))
    if copy := report.get("measured", {}).get("copy_bytes_per_s"):
        facts.append(("measured copy", f"{copy / 1e9:,.4g} GB/s, read + write"))
    if report.get("interconnect"):
        rate = report.get("interconnect_bytes_per_s")
        both_ways = f", {rate / 1e9:,.4g} GB/s both ways" if rate else ""
        facts.append(("interconnect", report["interconnect"] + both_ways))
    if report.get("tdp_w"):
        facts.append(("board power", f"{report['tdp_w']:g} W"))
    if len(report.get("devices", [])) > 1:
        facts.append(("devices here", str(len(report["devices"]))))
    basis = f"{report['basis']}: " if report.get("basis") else ""
    facts += [("source", basis + source) for source in report["sources"]]
    if report.get("notes"):
        facts.append(("notes", report["notes"]))
    facts += [("warning", warning["message"]) for warning in report["warnings"]]
    return facts
