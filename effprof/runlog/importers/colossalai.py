"""ColossalAI's benchmark lines, wrapped by its console over up to three lines a step.

Whose tokens its throughput counts, the job's or a device's, differs between its examples and does not stand in the
line, so that it is no rate here; its TFLOP/s are per GPU.
"""

from __future__ import annotations

from effprof.runlog.importers.table import Column, LineFormat

FORMAT = LineFormat(
    name="colossalai",
    framework="ColossalAI",
    step=r"\bStep time: {n}(?:,|$)",
    columns={
        "step_time_s": Column(r"\bStep time: {n}"),
        "tflops_per_device": Column(r"\bTFLOPS(?: per GPU)?: {n}"),
        "loss": Column(r"\b[Ll]oss: {n}"),
    },
    is_block=True,
    weight=1.5,
)
