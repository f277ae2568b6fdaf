"""From events to columns: what one rank's devices did, who launched it, and what the host was doing.

What is kept grows with the number of device activities and launches (about a tenth of a trace), not with the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from effprof.trace.events import ActivityArgs, Event, LaunchArgs, Number, OperatorArgs, OtherArgs, decode_args
from effprof.trace.lanes import Lanes
from effprof.trace.shapes import SHAPED_OPERATORS, Work, work_of
from effprof.trace.table import Table

KERNEL, COPY, SET, _RUNTIME, _OPERATOR, _ANNOTATION, _NO_CATEGORY = range(7)
NANOSECONDS_FROM = 1e17  # Unix time in µs passes this in the year 5138; in ns it did so in 1973
_MOST_NAME = 512  # characters of a kernel's name that are kept
_MOST_ROLES = 65536  # names whose role is remembered
_MOST_RANKS = 65536  # characters of the list of a group's ranks that are kept

_KIND_OF: dict[str | None, int] = {
    None: _NO_CATEGORY,
    "": _NO_CATEGORY,
    "kernel": KERNEL,
    "Kernel": KERNEL,
    "gpu_memcpy": COPY,
    "Memcpy": COPY,
    "gpu_memset": SET,
    "Memset": SET,
    "cuda_runtime": _RUNTIME,
    "Runtime": _RUNTIME,
    "cuda_driver": _RUNTIME,
    "xpu_runtime": _RUNTIME,
    "xpu_driver": _RUNTIME,
    "hip_runtime": _RUNTIME,
    "privateuse1_runtime": _RUNTIME,
    "privateuse1_driver": _RUNTIME,
    "mtia_runtime": _RUNTIME,
    "glow_runtime": _RUNTIME,
    "cpu_op": _OPERATOR,
    "Operator": _OPERATOR,
    "user_annotation": _ANNOTATION,
}
_LAUNCH = re.compile(r"launch|memcpy|memset|enqueue|append|fill|copy", re.IGNORECASE)
_STEP = re.compile(r"ProfilerStep#(\d{1,18})")
_INPUT_WAIT = re.compile(
    r"^enumerate\(DataLoader\)|train_dataloader_next|^## (?:wait_for_batch|load_batch|data_load) ##"
)
_COLLECTIVE = re.compile(r"^(?:nccl|gloo|mpi|ucc|xccl|hccl|rccl|mccl|ccl|lccl|eccl|cncl|bkcl):(.+)$")
_HOST_BACKENDS = ("gloo:", "mpi:", "ucc:")

# What an annotation is good for, decided once per name.
STEP, INPUT_WAIT, HOST_COLLECTIVE, DEVICE_COLLECTIVE, OPTIMIZER, _SHAPED, _NOTHING = range(7)


def annotation_role(name: str) -> int:
    """What an annotation of the host's timeline says about the device's."""
    if _STEP.fullmatch(name):
        return STEP
    if _INPUT_WAIT.search(name):
        return INPUT_WAIT
    if name.startswith("Optimizer.step#"):
        return OPTIMIZER
    if name.startswith(_HOST_BACKENDS):
        return HOST_COLLECTIVE
    return DEVICE_COLLECTIVE if _COLLECTIVE.match(name) else _NOTHING


def step_number(name: str) -> int:
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else -1


class Collective(msgspec.Struct, frozen=True):
    """What Kineto writes beside a communication kernel; equal for every rank that takes part."""

    name: str
    group: str
    ranks: str
    size: int
    dtype: str


class Collector:
    """Takes the groups of events of one trace; `effprof.trace.read` makes a `RankTrace` of what it holds."""

    def __init__(self) -> None:
        self.origin: int | None = None
        self.names: dict[str, int] = {}
        self.threads: dict[Any, int] = {}
        self.activity = Table(
            *("correlation", "external", "sequence", "elements", "bytes", "device"),
            small=("kind", "name", "collective"),
        )
        self.launches = Table("correlation", small=("thread",))
        self.annotations = Table(small=("name", "thread", "role"))
        self.operators = Table("external", small=("thread", "work"))
        self.work: list[Work] = []
        self.collectives: dict[Collective, int] = {}
        self.lanes = Lanes()
        self.unusable = 0
        self._is_launch: dict[str, bool] = {}
        self._roles: dict[str, int] = {}
        self._operator_roles: dict[str, int] = {}

    def take(self, events: list[Event]) -> None:
        """Add a group of events."""
        activity: list[Event] = []
        kinds: list[int] = []
        launches: list[Event] = []
        operators: list[Event] = []
        plain: list[Event] = []
        kind_of, is_launch, operator_roles = _KIND_OF.get, self._is_launch, self._operator_roles
        for event in events:
            kind = kind_of(event.cat)
            if kind is None:
                continue
            if kind == _OPERATOR:
                role = operator_roles.get(event.name)
                if role is None:
                    role = self._operator_role(event.name)
                if role == _SHAPED:
                    operators.append(event)
                elif role == INPUT_WAIT:
                    self._take_annotation(event)
            elif kind == _RUNTIME:
                name = event.name
                if name not in is_launch and len(is_launch) < _MOST_ROLES:
                    is_launch[name] = bool(_LAUNCH.search(name))
                if is_launch.get(name):
                    launches.append(event)
            elif kind <= SET:
                activity.append(event)
                kinds.append(kind)
            elif kind == _ANNOTATION:
                self._take_annotation(event)
            elif event.ph == "X":
                plain.append(event)
            elif event.ph == "M" and event.name == "process_name":
                self.lanes.name(event.pid, str(decode_args([event], OtherArgs)[0].name))
        self._take_activity(activity, kinds)
        self._take_launches(launches)
        self._take_operators(operators)
        self._take_plain(plain)

    def _take_activity(self, events: list[Event], kinds: list[int]) -> None:
        placed = self._place(events, self.activity)
        if not len(placed):
            return
        events, kinds = [events[index] for index in placed], [kinds[index] for index in placed]
        args = decode_args(events, ActivityArgs)
        nothing = np.full(len(events), -1, dtype=np.int64)
        collectives, sizes, sequence = nothing, nothing, nothing
        if any(one.collective or one.group_size is not None or one.in_elements is not None for one in args):
            collectives = np.array([self._collective(one) for one in args], dtype=np.int64)
            sizes = np.maximum(
                integers([one.in_elements for one in args]), integers([one.out_elements for one in args])
            )
            sequence = integers([one.sequence for one in args])
        self.activity.extend(
            kind=kinds,
            name=self._names(event.name for event in events),
            correlation=integers([one.correlation for one in args]),
            external=integers([one.external_id for one in args]),
            collective=collectives,
            sequence=sequence,
            elements=sizes,
            bytes=integers([one.bytes for one in args]),
            device=integers(
                [event.pid if one.device is None else one.device for event, one in zip(events, args, strict=True)]
            ),
        )

    def _take_launches(self, events: list[Event]) -> None:
        placed = self._place(events, self.launches)
        if len(placed):
            events = [events[index] for index in placed]
            self.launches.extend(
                correlation=integers([one.correlation for one in decode_args(events, LaunchArgs)]),
                thread=self._threads(events),
            )

    def _take_operators(self, events: list[Event]) -> None:
        args = decode_args(events, OperatorArgs)
        work = [work_of(event.name, one) for event, one in zip(events, args, strict=True)]
        known = [index for index, one in enumerate(work) if one is not None]
        placed = self._place([events[index] for index in known], self.operators)
        known = [known[index] for index in placed]
        self.operators.extend(
            thread=self._threads([events[index] for index in known]),
            external=integers([args[index].external_id for index in known]),
            work=list(range(len(self.work), len(self.work) + len(known))),
        )
        self.work += [one for index in known if (one := work[index]) is not None]

    def _take_annotation(self, event: Event) -> None:
        role = self._role(event.name)
        if role != _NOTHING and len(self._place([event], self.annotations)):
            self.annotations.extend(name=self._names([event.name]), thread=self._threads([event]), role=[role])

    def _operator_role(self, name: str) -> int:
        """Older profilers write the data loader's wait as an operator."""
        is_loader = name.startswith("enumerate(DataLoader)")
        role = _SHAPED if name in SHAPED_OPERATORS else INPUT_WAIT if is_loader else _NOTHING
        if len(self._operator_roles) < _MOST_ROLES:
            self._operator_roles[name] = role
        return role

    def _role(self, name: str) -> int:
        role = self._roles.get(name)
        if role is None:
            role = annotation_role(name)
            if len(self._roles) < _MOST_ROLES:
                self._roles[name] = role
        return role

    def _take_plain(self, events: list[Event]) -> None:
        """Events without a category: exports (Ascend) that tell what an event is by its process only."""
        tasks = []
        for event in events:
            if self._role(event.name) != _NOTHING:
                self._take_annotation(event)
            elif self.lanes.may_matter(event.pid):
                tasks.append(event)
        placed = self._place(tasks, self.lanes.table)
        if len(placed):
            tasks = [tasks[index] for index in placed]
            self.lanes.table.extend(
                name=self._names(event.name for event in tasks),
                lane=[self.lanes.index(event.pid) for event in tasks],
                task=self._names(args.task_type or "" for args in decode_args(tasks, OtherArgs)),
            )

    def _place(self, events: list[Event], table: Table) -> npt.NDArray[np.intp]:
        """Append start and duration of the events that have usable ones; which of them these are."""
        events_of = np.arange(len(events), dtype=np.intp)
        if not events:
            return events_of
        if self.origin is None:
            self.origin = _first_time(events)
        origin = self.origin
        try:
            start = np.array([event.ts - origin for event in events], dtype=np.float64)  # type: ignore[operator]
            duration = np.array([event.dur for event in events], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            start = np.array([_offset(event.ts, origin) for event in events])
            duration = np.array([_offset(event.dur, 0) for event in events])
        is_usable = (duration >= 0.0) & (duration < 1e18) & (np.abs(start) < 1e18)
        is_usable &= np.array([event.ph == "X" for event in events])
        if not is_usable.all():
            events_of, start, duration = events_of[is_usable], start[is_usable], duration[is_usable]
            self.unusable += sum(event.ph == "X" for event in events) - len(events_of)
        table.add_times(start, duration)
        return events_of

    def _names(self, names: Iterable[str]) -> list[int]:
        known = self.names
        return [known.setdefault(name if len(name) <= _MOST_NAME else name[:_MOST_NAME], len(known)) for name in names]

    def _threads(self, events: list[Event]) -> list[int]:
        known = self.threads
        return [known.setdefault(event.tid, len(known)) for event in events]

    def _collective(self, args: ActivityArgs) -> int:
        """Index of the collective that Kineto's metadata names; -1 without metadata."""
        if not args.collective and args.group_size is None and args.in_elements is None:
            return -1
        collective = Collective(
            name=(args.collective or "").strip()[:_MOST_NAME],
            group=str(args.group_name if args.group_name is not None else "")[:_MOST_NAME],
            ranks=bytes(args.group_ranks).decode("utf-8", "replace").strip('"')[:_MOST_RANKS],
            size=integer(args.group_size),
            dtype=(args.dtype or "")[:_MOST_NAME],
        )
        return self.collectives.setdefault(collective, len(self.collectives))


def _first_time(events: list[Event]) -> int:
    """A whole number near the times of a trace, so that differences from it keep their digits."""
    for event in events:
        if event.ts is None:
            continue
        try:
            return int(float(event.ts))
        except (TypeError, ValueError, OverflowError):
            continue
    return 0


_NAN = float("nan")


def _offset(value: Number, origin: int) -> float:
    """A time given as a number or as text (Ascend writes "1717575960208020.758"), less the origin; nan for neither."""
    if value is None:
        return _NAN
    try:
        if type(value) is str:
            whole, _, rest = value.partition(".")
            sign = -1.0 if whole.startswith("-") else 1.0
            return float(int(whole) - origin) + (sign * float(f".{rest}") if rest else 0.0)
        return float(value - origin)  # type: ignore[operator]
    except (TypeError, ValueError, OverflowError):
        return _NAN


def integers(values: list[Number]) -> npt.NDArray[np.int64]:
    """`integer` of each."""
    try:
        return np.array([-1 if value is None else value for value in values], dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        return np.array([integer(value) for value in values], dtype=np.int64)


def integer(value: Number) -> int:
    """A 64-bit integer of what a trace gives as a number or as text; -1 where it is none."""
    try:
        number = int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return -1
    return number if -(1 << 62) < number < 1 << 62 else -1
