"""torchtitan and its forks: one line a step with rates per device.

The line is `MetricsProcessor.log`'s; MFU is against the peak that torchtitan knows of the chip, an A100's where it
knows none. https://github.com/pytorch/torchtitan/blob/main/torchtitan/components/metrics.py
"""

from __future__ import annotations

import math

from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.table import Column, LineFormat


def _count_devices(log: ForeignLog) -> None:
    """The device mesh's sizes multiply to the number of devices, where the log does not say it itself."""
    mesh = str(log.facts.pop("mesh", ""))
    if mesh and "world_size" not in log.facts:
        log.facts["world_size"] = math.prod(int(size) for size in mesh.split(",") if size.strip())


FORMAT = LineFormat(
    name="torchtitan",
    framework="torchtitan",
    step=r"\bstep:\s*(?P<step>{n})\s+(?:\S*loss\S*:\s*\S+\s+).*\b(?:tps|wps):",
    columns={
        "loss": Column(r"\bloss:\s*{n}"),
        "memory_bytes": Column(r"\bmemory:\s*{n}\s*GiB", 2**30),
        "tokens_per_s_per_device": (Column(r"\btps:\s*{n}"), Column(r"\bwps:\s*{n}")),
        "tflops_per_device": Column(r"\btflops:\s*{n}"),
        "mfu": Column(r"\bmfu:\s*{n}\s*%", 1e-2),
    },
    facts={
        "mesh": r"device mesh with \[[^\]]*\], \[([\d, ]+)\]",
        "world_size": r"\bworld[_ ]size\s*[=:]\s*(\d+)",
        "device": r"(?:CUDA|XPU|HIP|NPU|GPU) capacity:\s*(.+?) with [\d.]+ ?GiB",
        "micro_batch": r"\blocal batch size:?\s*(\d+)",
        "global_batch": r"\bglobal batch size:?\s*(\d+)",
        "sequence_length": r"\bsequence length:?\s*(\d+)",
        "parameters": r"\bsize:\s*([\d,]+) total parameters",
    },
    finish=_count_devices,
)
