"""Kernels by family: how often, how long, how fast, and on which units."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from effprof.trace import intervals
from effprof.trace.collect import OPTIMIZER
from effprof.trace.intervals import Flags, Floats, Indices
from effprof.trace.names import COMMUNICATION, MATRIX_FAMILIES, uses_matrix_units
from effprof.trace.nesting import enclosing
from effprof.trace.read import KERNEL, RankTrace
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


class Labels(NamedTuple):
    """Per activity the index of its family in `names`; -1 for copies and sets."""

    codes: Indices
    names: list[str]

    def of(self, name: str) -> Flags:
        return self.codes == self.names.index(name) if name in self.names else np.zeros(len(self.codes), dtype=bool)


def label_kernels(trace: RankTrace, collectives: dict[int, str]) -> Labels:
    """The family of each kernel; communication as `communication.KIND`.

    Args:
        collectives: as `name_collectives` gives them.
    """
    activity = trace.activity
    found = {f"{COMMUNICATION}.{kind}" for kind in collectives.values()} | set(trace.families) | {"optimizer"}
    names = sorted(found)
    index = {name: at for at, name in enumerate(names)}
    by_name = np.array([index[family] for family in trace.families], dtype=np.intp)
    codes = by_name[activity.name]
    updates = trace.annotations.of(OPTIMIZER)
    if len(updates.start):
        is_in_update = enclosing(
            activity.launch_start, activity.launch_thread, updates.start, updates.end, updates.thread
        )
        is_part = np.isin(codes, [index[part] for part in _OPTIMIZER_PARTS if part in index])
        codes[(is_in_update >= 0) & is_part] = index["optimizer"]
    for at, kind in collectives.items():
        codes[at] = index[f"{COMMUNICATION}.{kind}"]
    codes[activity.kind != KERNEL] = -1
    return Labels(codes, names)


def measure_families(trace: RankTrace, labels: Labels, compute: intervals.Intervals) -> dict[str, Family]:
    """Every family's kernels, the one with most time first.

    Args:
        compute: when kernels other than communication run.
    """
    activity = trace.activity
    window = float(activity.end.max() - activity.start[0])
    operator = _operators_of(trace)
    families = {}
    for code in intervals.distinct(labels.codes[labels.codes >= 0]):
        name, mask = labels.names[code], labels.codes == code
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
    duration = activity.end - activity.start
    is_compute = (operator >= 0) & (activity.kind == KERNEL) & ~activity.is_communication
    # a call's work is its main kernel's: what only fills or reduces for it has no rate of its own
    longest = np.zeros(len(operators.start))
    np.maximum.at(longest, operator[is_compute], duration[is_compute])
    here = np.full(len(operators.start), -1.0)
    np.maximum.at(here, operator[shaped], duration[shaped])
    calls = np.flatnonzero((here >= longest) & (here >= 0))
    seconds = float(duration[shaped].sum()) * US
    flops = float(operators.flops[calls].sum())
    if not len(calls) or seconds <= 0 or flops <= 0:
        return
    family.shaped_s = seconds
    family.flops_per_s = flops / seconds
    family.bytes_per_s = float(operators.bytes[calls].sum()) / seconds
    dtypes = np.array(operators.dtype)[calls]
    family.dtypes = {
        str(dtype): float(operators.flops[calls][dtypes == dtype].sum()) / flops for dtype in intervals.distinct(dtypes)
    }


def _message_bytes(trace: RankTrace, mask: Flags) -> float | None:
    """Bytes of the messages (the larger of what goes in and what comes out), where Kineto wrote them."""
    total, is_known = 0.0, False
    for index in np.flatnonzero(mask & (trace.activity.collective >= 0) & (trace.activity.elements >= 0)):
        item = _DTYPE_BYTES.get(trace.collectives[int(trace.activity.collective[index])].dtype.lower())
        if item:
            total, is_known = total + item * float(trace.activity.elements[index]), True
    return total if is_known else None


def top_kernels(trace: RankTrace, labels: Labels) -> list[KernelTotal]:
    """The kernels with the most time, by name and family."""
    is_kernel = labels.codes >= 0
    keys = trace.activity.name[is_kernel] * len(labels.names) + labels.codes[is_kernel]
    distinct, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
    totals = np.bincount(which, weights=(trace.activity.end - trace.activity.start)[is_kernel])
    order = np.argsort(-totals, kind="stable")[:_TOP]
    return [
        KernelTotal(
            name=trace.names[int(distinct[at]) // len(labels.names)],
            family=labels.names[int(distinct[at]) % len(labels.names)],
            count=int(counts[at]),
            total_s=float(totals[at]) * US,
        )
        for at in order
    ]


def measure_matrix_units(trace: RankTrace, labels: Labels) -> MatrixUnits | None:
    """How much of the matrix work's kernel time ran on matrix units; None without matrix work."""
    is_matrix = np.isin(
        labels.codes, [labels.names.index(family) for family in MATRIX_FAMILIES if family in labels.names]
    )
    if not is_matrix.any():
        return None
    sums: dict[bool | None, float] = {True: 0.0, False: 0.0, None: 0.0}
    names = trace.activity.name[is_matrix]
    totals = np.bincount(names, weights=(trace.activity.end - trace.activity.start)[is_matrix])
    for name in intervals.distinct(names):
        sums[uses_matrix_units(trace.names[name])] += float(totals[name]) * US
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
        median_launch_gap_s=intervals.median(gap[has_next]) * US if has_next.any() else None,
    )


def measure_copies(trace: RankTrace) -> dict[str, Copies]:
    """Copies by direction (`HtoD`, `DtoH`, `DtoD`, `PtoP`, …) and sets, the one with most time first."""
    activity = trace.activity
    is_copy = activity.kind != KERNEL
    directions: dict[str, list[int]] = {}
    for name in intervals.distinct(activity.name[is_copy]):
        directions.setdefault(_direction(trace.names[name]), []).append(int(name))
    copies = {}
    for name, members in sorted(directions.items()):
        mask = is_copy & np.isin(activity.name, members)
        sizes: Floats = activity.bytes[mask].astype(np.float64)
        copies[name] = Copies(
            count=int(mask.sum()),
            total_s=float((activity.end - activity.start)[mask].sum()) * US,
            union_s=intervals.length(intervals.union(activity.start[mask], activity.end[mask])) * US,
            bytes=int(sizes[sizes >= 0].sum()) if (sizes >= 0).any() else None,
        )
    return dict(sorted(copies.items(), key=lambda item: -item[1].union_s))


def _direction(name: str) -> str:
    """`HtoD` of "Memcpy HtoD (Pageable -> Device)" and of what other runtimes write; `set` of a memset."""
    lower = name.lower().replace("_", "")
    if "memset" in lower or "fill" in lower:
        return "set"
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
