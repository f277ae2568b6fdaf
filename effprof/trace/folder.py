"""Which files are traces: by their names in a folder, by their first bytes where somebody names one."""

from __future__ import annotations

import re
import zlib

from effprof.errors import EffprofError
from effprof.runlog.files import Files

_SUFFIXES = (".json", ".json.gz")
_HEAD_BYTES = 1 << 16
# A Chrome trace: a list of events, or an object with one (and what Kineto writes before it).
_EVENT_KEYS = re.compile(rb'"(?:ph|traceEvents)"\s*:')
_FRAME_KEYS = re.compile(
    rb'^\s*\{\s*"(?:schemaVersion|deviceProperties|traceEvents|displayTimeUnit|baseTimeNanoseconds)"'
)


def is_trace_path(path: str) -> bool:
    """Whether a path names a profiler trace, or a folder of them and no run of effprof's own."""
    files = Files(path)
    if not files.exists():
        return path.endswith(".json.gz")
    if files.is_file():
        return (
            path.endswith(_SUFFIXES)
            and files.name(path) != "run.json"
            and (path.endswith(".json.gz") or _looks_like_trace(path))
        )
    names = files.names()
    if "run.json" in names or any(name.startswith("attempt-") for name in names):
        return False
    return any(name.endswith(_SUFFIXES) and _looks_like_trace(files.join(name)) for name in names)


def find_traces(path: str) -> list[str]:
    """The trace files that a path means, sorted by name.

    Raises:
        EffprofError: no such path, or a folder without a trace.
    """
    files = Files(path)
    if not files.exists():
        raise EffprofError(f"{path}: no such file or folder", "give a profiler trace, or a folder of them")
    files.require()
    if files.is_file():
        return [path]
    found = [files.join(name) for name in files.names() if name.endswith(_SUFFIXES)]
    found = [file for file in found if _looks_like_trace(file)]
    if not found:
        raise EffprofError(
            f"{path}: holds no profiler trace (.json, .json.gz)",
            "give the folder that tensorboard_trace_handler or export_chrome_trace wrote into",
        )
    return found


def _looks_like_trace(path: str) -> bool:
    """By the first bytes: a run record, a config or a gzip of something else is none."""
    try:
        if "://" in path:
            return True
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
        if head.startswith(b"\x1f\x8b"):
            head = zlib.decompressobj(wbits=31).decompress(head, _HEAD_BYTES)
    except (OSError, zlib.error):
        return True  # reading it will say what is wrong
    return bool(_EVENT_KEYS.search(head) or _FRAME_KEYS.search(head))
