"""From events to columns: what one rank's devices did, who launched it, and what the host was doing.

What is kept grows with the number of device activities and launches (about a tenth of a trace), not with the file.
"""

from __future__ import annotations

import re
from array import array
from typing import Any

import msgspec

from effprof.trace.events import Args, Event, Number
from effprof.trace.lanes import Lanes
from effprof.trace.shapes import SHAPED_OPERATORS, Work, work_of
from effprof.trace.table import Table

KERNEL, COPY, SET, _RUNTIME, _OPERATOR, _ANNOTATION = range(6)
NANOSECONDS_FROM = 1e17  # Unix time in µs passes this in the year 5138; in ns it did so in 1973
_MOST_NAME = 512  # characters of a kernel's name that are kept

_KIND_OF = {
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
STEP, INPUT_WAIT, HOST_COLLECTIVE, DEVICE_COLLECTIVE, OPTIMIZER, _NOTHING = range(6)


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
        self.activity = Table("kind", "name", "correlation", "external", "collective", "sequence", "bytes", "device")
        self.launches = Table("correlation", "thread")
        self.annotations = Table("name", "thread", "role")
        self.operators = Table("thread", "external", "work")
        self.work: list[Work] = []
        self.collectives: dict[Collective, int] = {}
        self.elements = array("q")  # message elements (larger of in and out) per activity with a collective
        self.lanes = Lanes()
        self.unusable = 0
        self._launch_names: dict[str, bool] = {}
        self._roles: dict[str, int] = {}

    def take(self, events: list[Event]) -> None:
        """Add a group of events."""
        kind_of = _KIND_OF.get
        shaped = SHAPED_OPERATORS
        roles = self._roles
        for event in events:
            category = event.cat
            if not category:
                self._take_without_category(event)
                continue
            kind = kind_of(category)
            if kind is None or event.ph != "X":
                continue
            if kind == _OPERATOR:
                if event.name in shaped:
                    self._take_operator(event)
                elif event.name.startswith("enumerate(DataLoader)"):
                    self._take_annotation(event, INPUT_WAIT)
            elif kind == _RUNTIME:
                self._take_launch(event)
            elif kind == _ANNOTATION:
                role = roles.get(event.name)
                if role is None:
                    role = roles[event.name] = annotation_role(event.name)
                if role != _NOTHING:
                    self._take_annotation(event, role)
            else:
                self._take_activity(event, kind)

    def _take_activity(self, event: Event, kind: int) -> None:
        table = self.activity
        if not self._place(event, table):
            return
        columns, args = table.columns, event.args or _NO_ARGS
        columns["kind"].append(kind)
        columns["name"].append(self._name(event.name))
        columns["correlation"].append(integer(args.correlation))
        columns["external"].append(integer(args.external_id))
        columns["bytes"].append(integer(args.bytes))
        columns["device"].append(integer(args.device if args.device is not None else event.pid))
        if kind == KERNEL and (args.collective or args.group_size is not None or args.in_elements is not None):
            columns["collective"].append(self._collective(args))
            columns["sequence"].append(integer(args.sequence))
            self.elements.append(max(integer(args.in_elements), integer(args.out_elements)))
        else:
            columns["collective"].append(-1)
            columns["sequence"].append(-1)
            self.elements.append(-1)

    def _take_launch(self, event: Event) -> None:
        name = event.name
        is_launch = self._launch_names.get(name)
        if is_launch is None:
            is_launch = self._launch_names[name] = bool(_LAUNCH.search(name))
        if not is_launch or event.args is None or event.args.correlation is None:
            return
        if self._place(event, self.launches):
            self.launches.columns["correlation"].append(integer(event.args.correlation))
            self.launches.columns["thread"].append(self._thread(event.tid))

    def _take_operator(self, event: Event) -> None:
        work = work_of(event.name, event.args) if event.args else None
        if work is not None and event.args and self._place(event, self.operators):
            self.operators.columns["thread"].append(self._thread(event.tid))
            self.operators.columns["external"].append(integer(event.args.external_id))
            self.operators.columns["work"].append(len(self.work))
            self.work.append(work)

    def _take_annotation(self, event: Event, role: int) -> None:
        if self._place(event, self.annotations):
            self.annotations.columns["name"].append(self._name(event.name))
            self.annotations.columns["thread"].append(self._thread(event.tid))
            self.annotations.columns["role"].append(role)

    def _take_without_category(self, event: Event) -> None:
        """Names of processes, and the exports (Ascend) that tell kinds of events by their process only."""
        if event.ph == "M":
            if event.name == "process_name" and event.args is not None:
                self.lanes.name(event.pid, str(event.args.name))
        elif event.ph == "X":
            role = annotation_role(event.name)
            if role != _NOTHING:
                self._take_annotation(event, role)
            elif self.lanes.may_matter(event.pid):
                table = self.lanes.table
                if self._place(event, table):
                    task = (event.args.task_type if event.args else None) or ""
                    table.columns["name"].append(self._name(event.name))
                    table.columns["lane"].append(self.lanes.index(event.pid))
                    table.columns["task"].append(self._name(task))

    def _place(self, event: Event, table: Table) -> bool:
        """Append the event's start and duration to a table; False where it has none that can be used."""
        start, duration = event.ts, event.dur
        try:
            if self.origin is None:
                self.origin = int(float(start))  # type: ignore[arg-type]
            if type(start) is str:
                whole, _, rest = start.partition(".")
                offset = float(int(whole) - self.origin) + (float(f".{rest}") if rest else 0.0)
            else:
                offset = float(start - self.origin)  # type: ignore[operator]
            lasts = float(duration)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            self.unusable += 1
            return False
        if not (lasts >= 0.0 and lasts < 1e18 and -1e18 < offset < 1e18):
            self.unusable += 1
            return False
        table.start.append(offset)
        table.duration.append(lasts)
        return True

    def _name(self, name: str) -> int:
        return self.names.setdefault(name if len(name) <= _MOST_NAME else name[:_MOST_NAME], len(self.names))

    def _thread(self, thread: Number) -> int:
        return self.threads.setdefault(thread, len(self.threads))

    def _collective(self, args: Args) -> int:
        collective = Collective(
            name=(args.collective or "").strip()[:_MOST_NAME],
            group=str(args.group_name if args.group_name is not None else "")[:_MOST_NAME],
            ranks=bytes(args.group_ranks).decode("utf-8", "replace").strip('"')[:65536],
            size=integer(args.group_size),
            dtype=(args.dtype or "")[:_MOST_NAME],
        )
        return self.collectives.setdefault(collective, len(self.collectives))


_NO_ARGS = Args()


def integer(value: Number) -> int:
    """A 64-bit integer of what a trace gives as a number or as text; -1 where it is none."""
    if type(value) is int:
        return value if -(1 << 62) < value < 1 << 62 else -1
    try:
        number = int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return -1
    return number if -(1 << 62) < number < 1 << 62 else -1
