"""Where a CPU went in a trace of its operators: what computed, by kernel family, and what the host did beside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from effprof.trace import intervals
from effprof.trace.intervals import Intervals
from effprof.trace.names import kernel_family
from effprof.trace.stream import EventStream

_GEMM = re.compile(r"(?:add|badd)?(?:mm|bmm|mv)|linear|mkldnn_linear|dot|vdot|matmul|einsum")
_ELEMENTWISE = re.compile(
    r"(?:add|sub|rsub|mul|div|neg|abs|square|pow|exp|log|sqrt|rsqrt|where|masked_fill|clamp|clamp_min|lerp|addcdiv|"
    r"addcmul|relu|gelu|silu|tanh|sigmoid|threshold_backward|normal|bernoulli|uniform|random|eq|ne|lt|gt|le|ge)_?"
)
_REDUCTION = re.compile(r"sum|mean|max|min|norm|linalg_vector_norm|var|std|prod|cumsum|topk|sort|argmax|any|all")
# Operators that make a tensor without touching elements: what one takes, any operator takes at least.
_DATALESS = re.compile(
    r"as_strided|view|_unsafe_view|reshape|expand|t|transpose|permute|unsqueeze|squeeze|detach|alias|slice|select|empty"
)
# What an operator takes with next to no data, in units of one that touches none: benchmarks/operator_floor.py, means
# over Llama and GPT-2 of two tokens. The rest of a matrix product's floor is reading its weights.
FLOORS = {
    "elementwise": 5.0,
    "memory": 3.0,
    "reduction": 7.0,
    "normalisation": 6.0,
    "embedding": 9.0,
    "gemm": 9.0,
    "attention": 15.0,
}
DATALESS_FLOOR, OTHER_FLOOR = 1.5, 2.0
_COLLECTIVE = re.compile(r"^(?:gloo|mpi|ucc):(.+)$")
STEP = "ProfilerStep#"


@dataclass(frozen=True)
class Operator:
    """One call. `own` is µs outside the operators that it called; `is_dataless` where it touches no element."""

    start: float
    own: float
    family: str
    is_dataless: bool

    @property
    def floor(self) -> float:
        """What it takes however little data there is, in units of the median operator that touches none."""
        return DATALESS_FLOOR if self.is_dataless else FLOORS.get(self.family, OTHER_FLOOR)


@dataclass
class OperatorTrace:
    """Operators and collectives of one process; µs on the trace's clock.

    Attributes:
        busy: time with at least one operator running, on any thread.
        communication, point_to_point: time with a collective, or a send or receive, under way.
        operators: each operator, in no order.
        steps: number → (start, end) of the annotation around each profiled step.
    """

    busy: Intervals
    communication: Intervals
    point_to_point: Intervals
    operators: list[Operator] = field(default_factory=list)
    steps: dict[int, tuple[float, float]] = field(default_factory=dict)


def read_operators(path: str) -> OperatorTrace:
    """Read a trace of a CPU's operators.

    Raises:
        EffprofError: no trace, or a damaged one.
    """
    operators: dict[int, list[tuple[float, float, str]]] = {}
    waits: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    steps: dict[int, tuple[float, float]] = {}
    for group in EventStream(path).groups():
        for event in group:
            if event.ph != "X" or event.ts is None or event.dur is None:
                continue
            start, end = float(event.ts), float(event.ts) + float(event.dur)
            if event.cat == "cpu_op":
                operators.setdefault(int(event.tid or 0), []).append((start, end, event.name))
            elif event.cat == "user_annotation":
                if event.name.startswith(STEP):
                    steps[int(event.name.removeprefix(STEP))] = (start, end)
                elif found := _COLLECTIVE.match(event.name):
                    waits["send" in found[1] or "recv" in found[1]].append((start, end))
    everything = [(start, end) for found in operators.values() for start, end, _ in found]
    return OperatorTrace(
        _union(everything),
        _union([*waits[True], *waits[False]]),
        _union(waits[True]),
        [one for found in operators.values() for one in _own_times(found)],
        steps,
    )


def operator_family(name: str) -> str:
    """The kernel family of an operator: `aten::addmm` → `gemm`."""
    short = _short(name)
    if _GEMM.fullmatch(short):
        return "gemm"
    if _ELEMENTWISE.fullmatch(short):
        return "elementwise"
    if _REDUCTION.fullmatch(short):
        return "reduction"
    return "memory" if short == "cat" else kernel_family(short)


def _short(name: str) -> str:
    """The operator's name without its library and its overload."""
    plain = name.rpartition("::")[2]
    return plain.rpartition(".")[0] or plain


def _own_times(operators: list[tuple[float, float, str]]) -> Iterator[Operator]:
    """One thread's operators, which nest."""
    open_calls: list[tuple[float, float, str, float]] = []  # start, end, name, µs in called operators
    for start, end, name in sorted(operators, key=lambda one: (one[0], -one[1])):
        while open_calls and open_calls[-1][1] <= start:
            yield _closed(open_calls.pop())
        if open_calls:
            outer = open_calls[-1]
            end = min(end, outer[1])
            open_calls[-1] = (*outer[:3], outer[3] + end - start)
        open_calls.append((start, end, name, 0.0))
    while open_calls:
        yield _closed(open_calls.pop())


def _closed(call: tuple[float, float, str, float]) -> Operator:
    start, end, name, inside = call
    is_dataless = _DATALESS.fullmatch(_short(name)) is not None
    return Operator(start, max(0.0, end - start - inside), operator_family(name), is_dataless)


def _union(spans: list[tuple[float, float]]) -> Intervals:
    both = np.array(spans, np.float64).reshape(-1, 2)
    return intervals.union(both[:, 0], both[:, 1])
