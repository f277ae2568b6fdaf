"""What every benchmark states beside its figures: the machine, the versions, the command."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("effprof", "torch", "pytorch-lightning", "transformers", "traceml-ai", "numpy", "msgspec")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and, where torch sees one, the accelerator."""
    import psutil
    import torch

    model = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "cpu": found.group(1) if found else model,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def machine_class(machine: dict[str, Any]) -> str:
    """A short name for files: the accelerator, or the number of CPU cores."""
    if machine["accelerator"]:
        return re.sub(r"[^a-z0-9]+", "-", machine["accelerator"].lower()).strip("-")
    return f"cpu-{machine['cores']}-core"


def list_versions() -> dict[str, str]:
    """Version of Python and of each package that matters here and is installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def result_path(name: str) -> Path:
    """`benchmarks/results/NAME-<machine class>.json`."""
    return RESULTS / f"{name}-{machine_class(describe_machine())}.json"


def write_result(name: str, figures: dict[str, Any], out: Path | None = None) -> Path:
    """Write `benchmarks/results/NAME-<machine class>.json`, or `out`, and return its path."""
    machine = describe_machine()
    path = out or result_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": _command(sys.argv),
        "machine": machine,
        "versions": list_versions(),
        **figures,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _command(arguments: Sequence[str]) -> str:
    """As it is typed; without `--out`, whose path says nothing about the figures."""
    said = " ".join(["python", f"benchmarks/{Path(arguments[0]).name}", *arguments[1:]])
    return re.sub(r" --out[ =]\S+", "", said)


def summarise(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes of some repeats, rounded to what a reader can use."""
    ordered = sorted(values)
    low, _, high = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else (ordered[0],) * 3
    figures = {"median": statistics.median(ordered), "q1": low, "q3": high, "min": ordered[0], "max": ordered[-1]}
    return {name: round(value, 3) for name, value in figures.items()}
