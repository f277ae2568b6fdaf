"""DeepSpeed's throughput timer, and DeepSpeed-Chat's account of a step of reinforcement learning.

`RunningAvgSamplesPerSec` hides stalls; `CurrSamplesPerSec` is of the last step alone.
https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/utils/timer.py
"""

from __future__ import annotations

from effprof.runlog.importers.table import Column, LineFormat

_MEMORY = Column(r"MaxMemAllocated={n}GB", 2**30)

FORMATS = [
    LineFormat(
        name="deepspeed",
        framework="DeepSpeed",
        step=r"\[timer\.py:\d+:stop\].*(?:global_step=|\d+/)(?P<step>{n}), RunningAvgSamplesPerSec",
        columns={
            "samples_per_s": (Column(r"CurrSamplesPerSec={n}"), Column(r"RunningAvgSamplesPerSec={n}")),
            "memory_bytes": _MEMORY,
        },
    ),
    LineFormat(
        name="deepspeed-chat",
        framework="DeepSpeed-Chat",
        step=r"\|E2E latency=",
        columns={
            "step_time_s": Column(r"E2E latency={n}s"),
            "generation_s": Column(r"Generate time={n}s"),
            "samples_per_s": Column(r"CurSamplesPerSec={n}"),
        },
        facts={"world_size": r"world_size *[=.]+ *(\d+)"},
        weight=3.0,
    ),
]
