"""Kernels by family: how often, how long, how fast, and on which units."""

from __future__ import annotations

import numpy as np

from effprof.trace import intervals
from effprof.trace.collect import OPTIMIZER
from effprof.trace.intervals import Flags, Floats, Indices
from effprof.trace.names import COMMUNICATION, MATRIX_FAMILIES, uses_matrix_units
from effprof.trace.nesting import enclosing
from effprof.trace.read import KERNEL, SET, RankTrace
from effprof.trace.summary import Copies, Family, KernelTotal, LaunchBound, MatrixUnits
from effprof.trace.windows import US

_TOP = 20
# What an optimizer's kernels are when it launches them one by one; its matrix products (Muon, Shampoo) stay GEMMs.
_OPTIMIZER_PARTS = frozenset({"elementwise", "reduction", "memory", "other"})
_DTYPE_BYTES = {
    "float": 4, "double": 8, "half": 2, "bfloat16": 2, "int": 4, "long": 8, "char": 1, "byte": 1, "bool": 1,
    "float32": 4, "float64": 8, "float16": 2, "int32": 4, "int64": 8, "int8": 1, "uint8": 1, "short": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip


def label_kernels(trace: RankTrace, collectives: dict[int, str]) -> list[str]:
    """Per activity its family; communication as `communication.KIND`; empty for copies and sets.

    Args:
        collectives: as `name_collectives` gives them.
    """
    activity = trace.activity
    updates = trace.annotations.of(OPTIMIZER)
    in_update = enclosing(activity.launch_start, activity.launch_thread, updates.start, updates.end, updates.thread)
    names, kinds = activity.name.tolist(), activity.kind.tolist()
    labels = []
    for index, (name, kind, update) in enumerate(zip(names, kinds, in_update.tolist(), strict=True)):
        if kind != KERNEL:
            labels.append("")
        elif index in collectives:
            labels.append(f"{COMMUNICATION}.{collectives[index]}")
        else:
            family = trace.families[name]
            labels.append("optimizer" if update >= 0 and family in _OPTIMIZER_PARTS else family)
    return labels


def measure_families(trace: RankTrace, labels: list[str], compute: intervals.Intervals) -> dict[str, Family]:
    """Every family's kernels, the one with most time first.

    Args:
        labels: as `label_kernels` gives them.
        compute: when kernels other than communication run.
    """
    activity = trace.activity
    if not len(activity):
        return {}
    window = float(activity.end.max() - activity.start[0])
    label = np.array(labels)
    operator = _operators_of(trace)
    families = {}
    for name in sorted(set(labels) - {""}):
        mask = label == name
        covered = intervals.union(activity.start[mask], activity.end[mask])
        union = intervals.length(covered)
        is_communication = name.startswith(COMMUNICATION)
        families[name] = Family(
            count=int(mask.sum()),
            total_s=float((activity.end - activity.start)[mask].sum()) * US,
            union_s=union * US,
            share=union / window if window else None,
            exposed_s=intervals.length(intervals.subtract(covered, compute)) * US if is_communication else None,
            message_bytes=_message_bytes(trace, mask) if is_communication else None,
        )
        if not is_communication:
            _rate(trace, families[name], mask, operator)
    return dict(sorted(families.items(), key=lambda item: -item[1].union_s))


def _operators_of(trace: RankTrace) -> Indices:
    """Per activity, the operator with recorded shapes that launched it; -1 where there is none."""
    activity, operators = trace.activity, trace.operators
    found = enclosing(activity.launch_start, activity.launch_thread, operators.start, operators.end, operators.thread)
    if len(operators.start):
        # without the launching call: by the id that newer profilers write on both (older ones repeat the correlation)
        lost = ~np.isfinite(activity.launch_start) & (activity.external > 0)
        lost &= activity.external != activity.correlation
        order = np.argsort(operators.external, kind="stable")
        ids = operators.external[order]
        at = np.minimum(np.searchsorted(ids, activity.external), len(ids) - 1)
        is_same = lost & (ids[at] == activity.external)
        found[is_same] = order[at[is_same]]
    return found


def _rate(trace: RankTrace, family: Family, mask: Flags, operator: Indices) -> None:
    """Achieved rates of a family of matrix products or attention, over the kernels whose operators have shapes."""
    activity, operators = trace.activity, trace.operators
    shaped = mask & (operator >= 0)
    if not shaped.any():
        return
    seconds = float((activity.end - activity.start)[shaped].sum()) * US
    calls = np.unique(operator[shaped])
    # a call's work is done by its main kernel: what only reduces or fills for it has no rate of its own
    longest: dict[int, float] = {}
    for index in np.flatnonzero(operator >= 0):
        if not activity.is_communication[index] and activity.kind[index] == KERNEL:
            at = int(operator[index])
            longest[at] = max(longest.get(at, 0.0), float(activity.end[index] - activity.start[index]))
    in_family: dict[int, float] = {}
    for index in np.flatnonzero(shaped):
        at = int(operator[index])
        in_family[at] = max(in_family.get(at, 0.0), float(activity.end[index] - activity.start[index]))
    calls = np.array([at for at in calls if in_family[int(at)] >= longest[int(at)]], dtype=np.intp)
    if not len(calls) or seconds <= 0:
        return
    flops = float(operators.flops[calls].sum())
    family.shaped_s = seconds
    family.flops_per_s = flops / seconds
    family.bytes_per_s = float(operators.bytes[calls].sum()) / seconds
    by_dtype: dict[str, float] = {}
    for at in calls:
        by_dtype[operators.dtype[at]] = by_dtype.get(operators.dtype[at], 0.0) + float(operators.flops[at])
    family.dtypes = {dtype: value / flops for dtype, value in by_dtype.items() if flops}


def _message_bytes(trace: RankTrace, mask: Flags) -> float | None:
    """Bytes of the messages (the larger of what goes in and what comes out), where Kineto wrote them."""
    total, is_known = 0.0, False
    for index in np.flatnonzero(mask & (trace.activity.collective >= 0) & (trace.activity.elements >= 0)):
        item = _DTYPE_BYTES.get(trace.collectives[int(trace.activity.collective[index])].dtype.lower())
        if item:
            total, is_known = total + item * float(trace.activity.elements[index]), True
    return total if is_known else None


def top_kernels(trace: RankTrace, labels: list[str]) -> list[KernelTotal]:
    """The kernels with the most time, by name and family."""
    totals: dict[tuple[int, str], list[float]] = {}
    duration = trace.activity.end - trace.activity.start
    for index, label in enumerate(labels):
        if label:
            entry = totals.setdefault((int(trace.activity.name[index]), label), [0.0, 0.0])
            entry[0] += 1
            entry[1] += float(duration[index])
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])[:_TOP]
    return [
        KernelTotal(name=trace.names[name], family=label, count=int(count), total_s=total * US)
        for (name, label), (count, total) in ordered
    ]


def measure_matrix_units(trace: RankTrace, labels: list[str]) -> MatrixUnits | None:
    """How much of the matrix work's kernel time ran on matrix units; None without matrix work."""
    duration = trace.activity.end - trace.activity.start
    sums: dict[bool | None, float] = {True: 0.0, False: 0.0, None: 0.0}
    is_any = False
    for index, label in enumerate(labels):
        if label in MATRIX_FAMILIES:
            is_any = True
            sums[uses_matrix_units(trace.names[int(trace.activity.name[index])])] += float(duration[index]) * US
    if not is_any:
        return None
    told = sums[True] + sums[False]
    return MatrixUnits(
        share=sums[True] / told if told else None, used_s=sums[True], unused_s=sums[False], unknown_s=sums[None]
    )


def measure_launches(trace: RankTrace) -> LaunchBound | None:
    """Kernels shorter than the time their host thread takes until its next launch; None without launches."""
    activity = trace.activity
    known = np.flatnonzero((activity.kind == KERNEL) & ~activity.is_communication & np.isfinite(activity.launch_start))
    if not len(known):
        return None
    order = known[np.lexsort((activity.launch_start[known], activity.launch_thread[known]))]
    start, thread = activity.launch_start[order], activity.launch_thread[order]
    has_next = np.r_[thread[1:] == thread[:-1], False]
    gap = np.r_[start[1:] - start[:-1], 0.0]
    has_next &= gap > 0  # one call that launches many kernels (a graph) leaves no gap between them
    duration = (activity.end - activity.start)[order]
    is_short = has_next & (duration < gap)
    return LaunchBound(
        share=float(is_short.sum()) / len(order),
        kernels=int(is_short.sum()),
        kernel_s=float(duration[is_short].sum()) * US,
        median_launch_gap_s=float(np.median(gap[has_next])) * US if has_next.any() else None,
    )


def measure_copies(trace: RankTrace) -> dict[str, Copies]:
    """Copies by direction (`HtoD`, `DtoH`, `DtoD`, `PtoP`, …) and sets, the one with most time first."""
    activity = trace.activity
    by_name = {index: _direction(trace.names[index]) for index in np.unique(activity.name)}
    direction = np.array(
        [
            "" if kind == KERNEL else "set" if kind == SET else by_name[name]
            for kind, name in zip(activity.kind, activity.name, strict=True)
        ]
    )
    copies = {}
    for name in sorted(set(direction.tolist()) - {""}):
        mask = direction == name
        sizes: Floats = activity.bytes[mask].astype(np.float64)
        copies[name] = Copies(
            count=int(mask.sum()),
            total_s=float((activity.end - activity.start)[mask].sum()) * US,
            union_s=intervals.length(intervals.union(activity.start[mask], activity.end[mask])) * US,
            bytes=int(sizes[sizes >= 0].sum()) if (sizes >= 0).any() else None,
        )
    return dict(sorted(copies.items(), key=lambda item: -item[1].union_s))


def _direction(name: str) -> str:
    """`HtoD` of "Memcpy HtoD (Pageable -> Device)" and of what other runtimes write."""
    lower = name.lower().replace("_", "")
    for direction in ("HtoD", "DtoH", "DtoD", "PtoP", "HtoH"):
        short, long = direction.lower(), _LONG[direction]
        if short in lower or long in lower or short.replace("to", "2") in lower:
            return direction
    return "other"


_LONG = {
    "HtoD": "hosttodevice",
    "DtoH": "devicetohost",
    "DtoD": "devicetodevice",
    "PtoP": "peertopeer",
    "HtoH": "hosttohost",
}
