"""Device and host memory of a run: the allocators' counters, the predictions beside them, and what a failure left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from effprof.analysis.memory_model import (
    MemoryAccount,
    MemoryFigures,
    MemoryPrediction,
    OutOfMemory,
    RankMemory,
    TensorGroup,
)
from effprof.analysis.model import Warning
from effprof.runlog.reader import RankLog, Run
from effprof.runlog.schema import Event, Memory

OUT_OF_MEMORY = "out_of_memory"
_STATES = ("parameters", "gradients", "optimizer")


def measure_memory(run: Run) -> tuple[MemoryFigures, list[Warning]]:
    """Peaks over all attempts. Of several ranks the largest decides: the fullest device is the one that runs out."""
    logs: dict[int, list[RankLog]] = {}
    for attempt in run.attempts:
        for rank in attempt.ranks:
            logs.setdefault(rank.header.rank, []).append(rank)
    lines_of = {number: [line for log in found for line in log.memory] for number, found in logs.items()}
    ranks = [_rank_memory(number, lines) for number, lines in lines_of.items()]
    lines = [line for found in lines_of.values() for line in found]
    parameters, gradients, optimizer = (_bytes(run.record.model, f"{name}_bytes") for name in _STATES)
    figures = MemoryFigures(
        device_total_bytes=_largest(line.device_total_bytes for line in lines)
        or _bytes(run.record.hardware, "memory_bytes")
        or _bytes(run.attempts[-1].ranks[0].header.device, "memory_bytes"),
        peak_reserved_bytes=_largest(rank.peak_reserved_bytes for rank in ranks),
        peak_allocated_bytes=_largest(rank.peak_allocated_bytes for rank in ranks),
        parameters_bytes=parameters,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        alloc_retries=_largest(line.alloc_retries for line in lines),
        ooms=_largest(line.ooms for line in lines),
        process_rss_bytes=_largest(rank.process_rss_bytes for rank in ranks),
        process_peak_rss_bytes=_largest(line.process_peak_rss_bytes for line in lines),
        out_of_memory=_failure(logs),
        ranks=sorted(ranks, key=lambda rank: rank.rank),
    )
    recorded = run.record.memory if isinstance(run.record.memory, Mapping) else {}
    fullest = max(ranks, key=lambda rank: (rank.peak_reserved_bytes or 0, rank.peak_allocated_bytes or 0))
    _add_allocator(figures, lines_of[fullest.rank])
    figures.tracked_bytes = _tracked(figures, recorded)
    figures.predictions = _predictions(figures, recorded)
    warnings = _explain(figures, run, recorded)
    if figures.peak_allocated_bytes is not None:
        figures.account, problem = _device_account(figures, fullest, recorded)
        warnings += [Warning(code="memory_account", message=problem)] if problem else []
    else:
        figures.account = _process_account(figures, recorded)
    return figures, warnings


def _rank_memory(number: int, lines: list[Memory]) -> RankMemory:
    return RankMemory(
        rank=number,
        peak_allocated_bytes=_largest(line.peak_allocated_bytes for line in lines),
        peak_reserved_bytes=_largest(line.peak_reserved_bytes for line in lines),
        process_rss_bytes=_largest(line.process_rss_bytes for line in lines),
    )


def _add_allocator(figures: MemoryFigures, lines: list[Memory]) -> None:
    """What the fullest rank's allocator holds beside tensors, and what else is on its device."""
    reserved = _largest(line.peak_reserved_bytes for line in lines)
    allocated = _largest(line.peak_allocated_bytes for line in lines)
    if reserved is not None and allocated is not None:
        slack = max(0, reserved - allocated)
        splits = _largest(
            line.peak_inactive_split_bytes if line.peak_inactive_split_bytes is not None else line.inactive_split_bytes
            for line in lines
        )
        figures.fragmentation_bytes = slack if splits is None else min(slack, splits)
        figures.cached_free_bytes = None if splits is None else slack - figures.fragmentation_bytes
    beside = [
        line.device_total_bytes - line.device_free_bytes - line.reserved_bytes
        for line in lines
        if line.device_total_bytes is not None
        and line.device_free_bytes is not None
        and line.reserved_bytes is not None
    ]
    figures.non_torch_bytes = max(0, max(beside)) if beside else None


def _at_peak(figures: MemoryFigures, recorded: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(gradients, temporary) at the peak as the rehearsal has it; (all gradients, None) without one."""
    rehearsed = recorded.get("fake_copy")
    at_peak = rehearsed.get("at_peak") if isinstance(rehearsed, Mapping) else None
    if isinstance(at_peak, Mapping):
        gradients, temporary = _bytes(at_peak, "gradients_bytes"), _bytes(at_peak, "temporary_bytes")
        if gradients is not None and figures.gradients_bytes is not None:
            # sharded gradients are fewer than the rehearsal on a whole copy makes
            return min(gradients, figures.gradients_bytes), temporary
    return figures.gradients_bytes, None


def _device_account(
    figures: MemoryFigures, fullest: RankMemory, recorded: Mapping[str, Any]
) -> tuple[MemoryAccount | None, str]:
    """The fullest rank's memory: states, what its tensors hold beside them, what its allocator and others hold."""
    allocated, reserved = fullest.peak_allocated_bytes, fullest.peak_reserved_bytes
    gradients, temporary = _at_peak(figures, recorded)
    known = (figures.parameters_bytes, gradients, figures.optimizer_bytes)
    if allocated is None or reserved is None or None in known:
        return None, ""
    lines = {name: size for name, size in zip(_STATES, known, strict=True) if size is not None}
    rest = allocated - sum(lines.values())
    if rest < 0:
        return None, "the states are larger than the allocator's peak (kept elsewhere?), so it can't be divided"
    if temporary is not None:
        lines["temporary"] = min(temporary, rest)
        figures.temporary_bytes = lines["temporary"]
        rest -= lines["temporary"]
    figures.activations_bytes = lines["activations"] = rest
    beside = {
        "cached_free": figures.cached_free_bytes,
        "fragmentation": figures.fragmentation_bytes,
        "non_torch": figures.non_torch_bytes,
    }
    lines.update({name: size for name, size in beside.items() if size is not None})
    # peaks of allocated and reserved bytes may come from different moments; what is left is rounding
    peak = max(reserved, allocated) + (figures.non_torch_bytes or 0)
    lines["other"] = peak - sum(lines.values())
    return MemoryAccount(basis="allocator", peak_bytes=peak, lines=lines), ""


def _process_account(figures: MemoryFigures, recorded: Mapping[str, Any]) -> MemoryAccount | None:
    """On a CPU: tensors as tracked or predicted, and what else the process holds."""
    tracked, rehearsed = recorded.get("tracked"), recorded.get("fake_copy")
    if isinstance(tracked, Mapping):
        basis = "tracker"
        at_peak = {name: tracked.get(f"peak_{name}") for name in _PARTS}
    elif isinstance(rehearsed, Mapping) and isinstance(rehearsed.get("at_peak"), Mapping):
        basis, at_peak = "fake_copy", dict(rehearsed["at_peak"])
    else:
        return None
    states = (figures.parameters_bytes, figures.optimizer_bytes)
    parts = {name.removesuffix("_bytes"): _bytes(at_peak, name) for name in _PARTS}
    if None in states or None in parts.values():
        return None
    lines = {"parameters": states[0] or 0, "optimizer": states[1] or 0}
    lines.update({name: size or 0 for name, size in parts.items()})
    figures.activations_bytes, figures.temporary_bytes = lines["activations"], lines["temporary"]
    tensors = sum(lines.values())
    resident = figures.process_peak_rss_bytes or figures.process_rss_bytes
    if resident is None or resident < tensors:
        # pages that were never touched are not resident
        return MemoryAccount(basis=basis if resident is not None else "predicted", peak_bytes=tensors, lines=lines)
    lines["other"] = resident - tensors
    return MemoryAccount(basis=basis, peak_bytes=resident, lines=lines)


_PARTS = ("gradients_bytes", "activations_bytes", "temporary_bytes")


def _tracked(figures: MemoryFigures, recorded: Mapping[str, Any]) -> int | None:
    tracked = recorded.get("tracked")
    peak = _bytes(tracked, "peak_bytes") if isinstance(tracked, Mapping) else None
    if peak is None or figures.parameters_bytes is None or figures.optimizer_bytes is None:
        return None
    return figures.parameters_bytes + figures.optimizer_bytes + peak


def _predictions(figures: MemoryFigures, recorded: Mapping[str, Any]) -> list[MemoryPrediction]:
    measured = figures.peak_allocated_bytes or figures.tracked_bytes
    found = []
    for source, peak_key, kept_key in (
        ("closed_form", "peak_bytes", "activations_bytes"),
        ("fake_copy", "device_peak_bytes", "kept_bytes"),
    ):
        facts = recorded.get(source)
        peak = _bytes(facts, peak_key) if isinstance(facts, Mapping) else None
        if peak is None or not isinstance(facts, Mapping):
            continue
        found.append(
            MemoryPrediction(
                source=source,
                peak_bytes=peak,
                peak_at=str(facts.get("step_peak_at") or facts.get("peak_at") or ""),
                activations_bytes=_bytes(facts, kept_key),
                measured_bytes=measured,
                ratio=peak / measured if measured else None,
            )
        )
    return found


def _failure(logs: Mapping[int, list[RankLog]]) -> OutOfMemory | None:
    found = [
        (number, log, event)
        for number, rank_logs in logs.items()
        for log in rank_logs
        for event in log.events
        if event.name == OUT_OF_MEMORY
    ]
    if not found:
        return None
    number, log, event = max(found, key=lambda each: each[1].wall(each[2].monotonic_ns))
    return _out_of_memory(number, event, [line for line in log.memory if line.monotonic_ns <= event.monotonic_ns])


def _out_of_memory(rank: int, event: Event, lines: list[Memory]) -> OutOfMemory:
    last = lines[-1] if lines else None
    states = [_bytes(event.data, f"{name}_bytes") for name in _STATES]
    if event.data.get("has_gradients") is False:
        states[1] = 0
    known = [size for size in states if size is not None]
    return OutOfMemory(
        rank=rank,
        message=event.message,
        requested_bytes=_bytes(event.data, "requested_bytes"),
        states_bytes=sum(known) if len(known) == len(states) else None,
        allocated_bytes=last.allocated_bytes if last else None,
        reserved_bytes=last.reserved_bytes if last else None,
        device_free_bytes=last.device_free_bytes if last else None,
        process_rss_bytes=last.process_rss_bytes if last else None,
        host_available_bytes=_bytes(event.data, "host_available_bytes"),
        largest=_groups(event.data.get("largest")),
    )


def _groups(rows: Any) -> list[TensorGroup]:
    if not isinstance(rows, list):
        return []
    return [
        TensorGroup(shape=str(row[0]), number=row[1], bytes=row[2])
        for row in rows
        if isinstance(row, list) and len(row) == 3 and isinstance(row[1], int) and isinstance(row[2], int)
    ]


def _explain(figures: MemoryFigures, run: Run, recorded: Mapping[str, Any]) -> list[Warning]:
    warnings = []
    reasons = recorded.get("reasons")
    for source, reason in (reasons if isinstance(reasons, Mapping) else {}).items():
        # one of the two predictions is enough; the other's absence is told in run.json
        if source == "tracked" or not figures.predictions:
            warnings.append(
                Warning(code="no_memory_prediction", message=f"memory, {source.replace('_', ' ')}: {reason}")
            )
    if figures.peak_allocated_bytes is not None:
        return warnings
    device_type = run.attempts[-1].ranks[0].header.device.get("type")
    reason = (
        "a CPU has no caching allocator: only the process's resident set is known"
        if device_type == "cpu"
        else "no allocator counters are in the log (they are taken at the log interval)"
    )
    return [*warnings, Warning(code="no_device_memory", message=f"device memory: {reason}")]


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _bytes(facts: Mapping[str, Any], key: str) -> int | None:
    value = facts.get(key)
    return int(value) if isinstance(value, (int, float)) and value >= 0 else None
