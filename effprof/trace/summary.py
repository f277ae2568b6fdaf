"""What the trace engine answers: the account of one rank, each key with its meaning and unit."""

from __future__ import annotations

from typing import Annotated

import msgspec


def _says(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class Idle(msgspec.Struct, kw_only=True):
    """Why the device was idle; sums to `idle_s`."""

    host_bound_s: Annotated[float, _says("nothing was queued: the host had not launched the next activity yet")] = 0.0
    input_wait_s: Annotated[float, _says("the same, while the host waited for the data loader")] = 0.0
    rank_wait_s: Annotated[
        float, _says("while the host sat in a collective, or queued work waited behind communication")
    ] = 0.0
    queued_s: Annotated[
        float, _says("the next activity was launched already: launch latency, stream order, events")
    ] = 0.0
    unknown_s: Annotated[float, _says("the trace does not say who launched the next activity")] = 0.0


class Phases(msgspec.Struct, kw_only=True):
    """Compute by the phase that launched it; sums to `compute_s`. Where phases overlap, the first one has the time."""

    forward_s: Annotated[float, _says("launched by the thread that drives the step, outside the optimizer")]
    backward_s: Annotated[float, _says("launched by other threads, which is where autograd runs; recomputation too")]
    optimizer_s: Annotated[float, _says("launched inside Optimizer.step")]
    unknown_s: Annotated[float, _says("the trace does not say who launched it")]


class Split(msgspec.Struct, kw_only=True):
    """A window of one rank's device time. compute + exposed communication + exposed copies + idle = window."""

    window_s: Annotated[float, _says("first start to last end of any device activity")]
    compute_s: Annotated[float, _says("at least one kernel that is not communication")]
    communication_s: Annotated[float, _says("at least one communication kernel")]
    communication_exposed_s: Annotated[float, _says("communication outside compute")]
    memory_copy_s: Annotated[float, _says("at least one copy or set")]
    memory_copy_exposed_s: Annotated[float, _says("copies and sets outside compute and communication")]
    idle_s: Annotated[float, _says("no device activity")]
    idle: Idle
    phases: Annotated[Phases | None, _says("null where no annotation tells which thread drives the step")] = None


class Step(Split, kw_only=True):
    """One profiled step: from its first device activity to the next step's (the last: to its end)."""

    step: Annotated[int, _says("number that the profiler gave it")]
    host_s: Annotated[float, _says("length of the ProfilerStep annotation on the host")]
    pipeline_bubble_s: Annotated[float | None, _says("exposed waiting in send and receive; null without them")] = None


class Family(msgspec.Struct, kw_only=True):
    """Kernels of one family. Overlapping kernels count once in `union_s`, each in full in `total_s`."""

    count: int
    total_s: Annotated[float, _says("sum of the kernels' durations: not wall time")]
    union_s: Annotated[float, _says("time with at least one kernel of the family")]
    share: Annotated[float | None, _says("union_s ÷ window_s")]
    exposed_s: Annotated[float | None, _says("of communication: outside compute")] = None
    shaped_s: Annotated[float | None, _says("kernel seconds whose operators' shapes are recorded")] = None
    flops_per_s: Annotated[float | None, _says("executed FLOPs ÷ shaped_s; null without shapes")] = None
    bytes_per_s: Annotated[float | None, _says("operands and result once ÷ shaped_s: a lower bound")] = None
    dtypes: Annotated[dict[str, float], _says("dtype: share of the executed FLOPs")] = {}
    message_bytes: Annotated[float | None, _says("of communication: message bytes where recorded")] = None
    roofline_share: Annotated[
        float | None, _says("achieved FLOP/s ÷ what peak and memory bandwidth allow; null for an unknown device")
    ] = None


class KernelTotal(msgspec.Struct, kw_only=True):
    """One kernel by name."""

    name: str
    family: str
    count: int
    total_s: float


class MatrixUnits(msgspec.Struct, kw_only=True):
    """Use of tensor cores (MFMA, XMX, cube) in GEMM, attention and convolution, as the kernels' names tell it."""

    share: Annotated[float | None, _says("used_s ÷ (used_s + unused_s); null where no name tells")]
    used_s: float
    unused_s: float
    unknown_s: Annotated[float, _says("names that do not tell")]


class LaunchBound(msgspec.Struct, kw_only=True):
    """Kernels that end sooner than the host can launch the next one: they cannot keep the queue filled."""

    share: Annotated[float | None, _says("of the kernels with a known launch; null without any")]
    kernels: int
    kernel_s: Annotated[float, _says("sum of their durations")]
    median_launch_gap_s: Annotated[float | None, _says("median time between launches of one host thread")]


class Copies(msgspec.Struct, kw_only=True):
    """Copies or sets of one direction."""

    count: int
    total_s: float
    union_s: float
    bytes: Annotated[int | None, _says("null where not recorded")] = None


class Stragglers(msgspec.Struct, kw_only=True):
    """This rank in the collectives that could be matched with other ranks' traces."""

    matched: Annotated[int, _says("collectives found in at least two ranks' traces")]
    matched_by: Annotated[str, _says("`sequence` (number that the process group gives) or `order`")]
    waiting_s: Annotated[float, _says("this rank inside a collective before the last rank came")]
    transferring_s: Annotated[float, _says("this rank inside a collective after the last rank came")]
    last_to_arrive: Annotated[int, _says("collectives in which this rank came last")]
    caused_wait_s: Annotated[float, _says("longest wait of another rank for this one, summed over collectives")]
    clock_offset_s: Annotated[float, _says("added to this trace's clock, so that collectives end together")]
    group_is_complete: Annotated[bool, _says("every member of the matched groups has a trace here")]


class RankKernels(Split, kw_only=True):
    """The kernel account of one rank."""

    kernels: Annotated[dict[str, Family], _says("FAMILY: {…}; communication as `communication.KIND`")]
    steps: list[Step] = []
    top_kernels: Annotated[list[KernelTotal], _says("the twenty kernels with the most time")] = []
    matrix_units: MatrixUnits | None = None
    launch_bound: LaunchBound | None = None
    pipeline_bubble_s: Annotated[float | None, _says("exposed waiting in send and receive; null without them")] = None
    copies: Annotated[dict[str, Copies], _says("DIRECTION: {…}")] = {}
    stragglers: Annotated[Stragglers | None, _says("null with a single rank's trace")] = None
    devices: Annotated[int, _says("devices this rank used; times are unions over them")] = 0
    events: Annotated[int, _says("events read from the trace")] = 0
    trace: Annotated[str, _says("path of the trace")] = ""
