"""Traces for the comparisons with HTA: the real ones, one made large, and one cut down to what HTA looks at."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "traces"
MISSING = f"{SHARED} holds no traces: they come from github.com/facebookresearch/HolisticTraceAnalysis, tests/data"
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_STEP = re.compile(r"ProfilerStep#\d+")


def list_traces() -> list[Path]:
    """The real traces beside the repository, smallest first."""
    return sorted(SHARED.glob("*.json*"), key=lambda path: (path.stat().st_size, path.name))


def load(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    document: dict[str, Any] = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return document


def hta_view(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the trace as HTA looks at it, what was changed for that): on this one both must agree to the microsecond.

    HTA takes every event on a stream for a kernel (stream synchronisations too), leaves out device activity whose
    launch it does not see inside the profiled steps (where there are two), and cuts times to whole microseconds.
    """
    events = [event for event in document["traceEvents"] if event.get("ph") == "X" and "dur" in event]
    reasons = []
    waits = [event for event in events if event.get("cat") not in _DEVICE and _stream(event) is not None]
    if waits:
        kinds = ", ".join(sorted({event.get("cat") or "no category" for event in waits}))
        reasons.append(f"HTA takes {len(waits)} events of {kinds} for kernels")
    events = [event for event in events if event.get("cat") in _DEVICE or _stream(event) is None]
    steps = {event["name"]: event for event in events if _STEP.fullmatch(event.get("name", ""))}
    if len(steps) > 1:
        last = max(event["ts"] + event["dur"] for event in steps.values())
        seen = {
            event["args"]["correlation"]
            for event in events
            if event.get("cat") not in _DEVICE and event["ts"] <= last and "correlation" in event.get("args", {})
        }
        unseen = [
            event for event in events if event.get("cat") in _DEVICE and event["args"].get("correlation") not in seen
        ]
        if unseen:
            reasons.append(f"HTA leaves out {len(unseen)} activities launched before or after the profiled steps")
        gone = {id(event) for event in unseen}
        events = [event for event in events if id(event) not in gone]
    if any(isinstance(event["ts"], float) and event["ts"] % 1 for event in events):
        reasons.append("HTA cuts times to whole µs (start up, end down)")
        for event in events:
            start, end = math.ceil(event["ts"]), math.floor(event["ts"] + event["dur"])
            event["ts"], event["dur"] = start, max(0, end - start)
    return {**document, "traceEvents": events}, reasons


def _stream(event: dict[str, Any]) -> int | None:
    """A stream's number; ROCm's launches name theirs by a pointer, which HTA does not take for one."""
    args = event.get("args") or {}
    stream = args.get("stream") if isinstance(args, dict) else None
    return stream if isinstance(stream, int) and stream >= 0 else None


def replicate(source: Path, target: Path, megabytes: int) -> None:
    """Write a trace of at least `megabytes`: the source's events again and again, later each time, ids moved on."""
    raw = gzip.decompress(source.read_bytes()).decode()
    head, _, rest = raw.partition('"traceEvents": [')
    body, _, _ = rest.rpartition("]")
    body = body.rstrip()
    events = json.loads(f"[{body}]")
    times = [event["ts"] for event in events if event.get("ph") == "X" and event.get("cat") != "Trace"]
    span = int(max(times) - min(times)) + 1_000_000
    correlations = [event["args"]["correlation"] for event in events if "correlation" in event.get("args", {})]
    moved = max(correlations) + 1
    time_at = re.compile(r'"ts": (\d+)')
    id_at = re.compile(r'"(correlation|External id|id)": (\d+)')
    written = 0
    with open(target, "w") as file:
        written += file.write(head + '"traceEvents": [')
        copy = 0
        while written < megabytes * 1_000_000:
            text = body
            if copy:
                shift, step = copy * span, copy * moved
                text = time_at.sub(lambda found, by=shift: f'"ts": {int(found[1]) + by}', text)  # type: ignore[misc]
                text = id_at.sub(lambda found, by=step: f'"{found[1]}": {int(found[2]) + by}', text)  # type: ignore[misc]
            written += file.write(("," if copy else "") + text)
            copy += 1
        file.write("]}")
