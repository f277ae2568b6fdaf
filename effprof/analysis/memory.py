"""Device and host memory of a run, from the allocator counters in the ranks' logs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from effprof.analysis.model import MemoryFigures, RankMemory, Warning
from effprof.runlog.reader import RankLog, Run
from effprof.runlog.schema import Memory


def measure_memory(run: Run) -> tuple[MemoryFigures, list[Warning]]:
    """Peaks over all attempts. Of several ranks the largest decides: the fullest device is the one that runs out."""
    logs: dict[int, list[RankLog]] = {}
    for attempt in run.attempts:
        for rank in attempt.ranks:
            logs.setdefault(rank.header.rank, []).append(rank)
    ranks = [_rank_memory(number, [line for log in found for line in log.memory]) for number, found in logs.items()]
    lines = [line for found in logs.values() for log in found for line in log.memory]
    allocated = _largest(rank.peak_allocated_bytes for rank in ranks)
    reserved = _largest(rank.peak_reserved_bytes for rank in ranks)
    parameters, gradients, optimizer = (
        _bytes(run.record.model, f"{name}_bytes") for name in ("parameters", "gradients", "optimizer")
    )
    known = [size for size in (parameters, gradients, optimizer) if size is not None]
    rest = allocated - sum(known) if allocated is not None and len(known) == 3 else None
    figures = MemoryFigures(
        device_total_bytes=_largest(line.device_total_bytes for line in lines)
        or _bytes(run.record.hardware, "memory_bytes")
        or _bytes(run.attempts[-1].ranks[0].header.device, "memory_bytes"),
        peak_reserved_bytes=reserved,
        peak_allocated_bytes=allocated,
        parameters_bytes=parameters,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=rest if rest is not None and rest >= 0 else None,
        fragmentation_bytes=reserved - allocated if reserved is not None and allocated is not None else None,
        alloc_retries=_largest(line.alloc_retries for line in lines),
        ooms=_largest(line.ooms for line in lines),
        process_rss_bytes=_largest(rank.process_rss_bytes for rank in ranks),
        ranks=sorted(ranks, key=lambda rank: rank.rank),
    )
    return figures, _explain(figures, run)


def _rank_memory(number: int, lines: list[Memory]) -> RankMemory:
    return RankMemory(
        rank=number,
        peak_allocated_bytes=_largest(line.peak_allocated_bytes for line in lines),
        peak_reserved_bytes=_largest(line.peak_reserved_bytes for line in lines),
        process_rss_bytes=_largest(line.process_rss_bytes for line in lines),
    )


def _explain(figures: MemoryFigures, run: Run) -> list[Warning]:
    if figures.peak_allocated_bytes is not None:
        return []
    device_type = run.attempts[-1].ranks[0].header.device.get("type")
    reason = (
        "a CPU has no caching allocator: only the process's resident set is known"
        if device_type == "cpu"
        else "no allocator counters are in the log (they are taken at the log interval)"
    )
    return [Warning(code="no_device_memory", message=f"device memory: {reason}")]


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _bytes(facts: dict[str, Any], key: str) -> int | None:
    value = facts.get(key)
    return int(value) if isinstance(value, (int, float)) and value >= 0 else None
