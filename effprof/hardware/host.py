"""What the machine itself is: processor model and memory, with a container's limit where there is one."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin" and (name := apple_chip()):
        return name
    return platform.processor() or platform.machine() or "CPU"


def apple_chip() -> str | None:
    """The chip's name on a Mac ("Apple M4 Max"), where torch gives none; None elsewhere."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=2, check=True).stdout.strip() or None
    return None


def core_count() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_memory(root: Path = CGROUP) -> tuple[int, int] | None:
    """(used, limit) bytes of this container's memory cgroup v2, or None where it has no limit."""
    try:
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((root / "memory.current").read_text())
        statistics = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        # page cache that the kernel gives back first is not memory anybody lacks
        return max(0, used - int(statistics.get("inactive_file", 0))), int(limit)
    except (OSError, ValueError):
        return None


def free_memory() -> int:
    """Bytes of memory that a further process could take."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limited = cgroup_memory()
    return min(available, limited[1] - limited[0]) if limited else available


def total_memory() -> int:
    """Bytes of memory this machine, or this container, may use."""
    import psutil

    limited = cgroup_memory()
    return limited[1] if limited else int(psutil.virtual_memory().total)
