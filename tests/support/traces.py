"""Hand-made Kineto traces for tests: events by what they are, times in µs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

Event = dict[str, Any]

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "traces"


def kernel(name: str, start: float, duration: float, *, correlation: int = 0, stream: int = 7, **args: Any) -> Event:
    """A kernel on a stream; `args` are further arguments, such as those of a collective."""
    return {
        "ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": stream, "ts": start, "dur": duration,
        "args": {"device": 0, "stream": stream, "correlation": correlation, "External id": correlation, **args},
    }  # fmt: skip


def copy(start: float, duration: float, *, name: str = "Memcpy HtoD (Pinned -> Device)", **args: Any) -> Event:
    return {**kernel(name, start, duration, **args), "cat": "gpu_memcpy"}


def launch(correlation: int, start: float, duration: float = 5.0, *, thread: int = 1) -> Event:
    """The host call that issues the activity with the same correlation id."""
    return {
        "ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": thread, "ts": start,
        "dur": duration, "args": {"correlation": correlation, "External id": correlation},
    }  # fmt: skip


def annotation(name: str, start: float, duration: float, *, thread: int = 1) -> Event:
    return {
        "ph": "X", "cat": "user_annotation", "name": name, "pid": 1, "tid": thread, "ts": start, "dur": duration,
        "args": {},
    }  # fmt: skip


def operator(name: str, start: float, duration: float, dims: list[Any], types: list[str], *, thread: int = 1) -> Event:
    return {
        "ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": thread, "ts": start, "dur": duration,
        "args": {"External id": 999, "Input Dims": dims, "Input type": types},
    }  # fmt: skip


def collective(name: str, start: float, duration: float, *, sequence: int | None = None, **args: Any) -> Event:
    """An NCCL kernel with what Kineto writes beside it."""
    about = {
        "Collective name": name, "In msg nelems": 1000, "Out msg nelems": 1000, "Group size": 2, "dtype": "Float",
        "Process Group Name": "0", "Process Group Ranks": "[0, 1]",
    }  # fmt: skip
    if sequence is not None:
        about["Seq"] = sequence
    return kernel(
        "ncclDevKernel_Generic(ncclDevKernelArgsStorage<4096ul>)", start, duration, stream=20, **about, **args
    )


def document(events: list[Event], *, rank: int | None = None, **frame: Any) -> dict[str, Any]:
    if rank is not None:
        frame["distributedInfo"] = {"backend": "nccl", "rank": rank, "world_size": 2}
    return {"schemaVersion": 1, **frame, "traceEvents": events}


def write(path: Path, content: Any, *, indent: int | None = None) -> str:
    """Write a trace as `.json` or `.json.gz`; bytes go in as they are."""
    data = content if isinstance(content, bytes) else json.dumps(content, indent=indent).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)
