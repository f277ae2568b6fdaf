"""The lines of a run's record: what the writer puts on disk and the reader takes back.

A rank log (`attempt-NNN/rank-RRRRR.ndjson`) and a node log (`attempt-NNN/node-NNNNN.ndjson`) are lines of
JSON, each a struct of this module told apart by its `type`. Each segment opens with a `Header` and can be
read alone. Times named `_ns` are the host's monotonic clock; the header's anchor pair turns them into wall
time. Unknown line types and fields are skipped, so fields may be added but never renamed.
"""

from __future__ import annotations

from typing import Any

import msgspec

LOG_SCHEMA = "effprof.log/1"
RUN_SCHEMA = "effprof.run/1"

# The spans of wall clock a rank's profiler tells apart, in the vocabulary of the time account. A step's columns
# hold `<name>_ns` for each; together they cover the time since the previous step's end without a gap or overlap.
STEP_PHASES = (
    "input_wait",
    "host_to_device",
    "forward",
    "backward",
    "optimizer",
    "generation",
    "other",
)
OUTSIDE_PHASES = ("startup", "compile", "evaluation", "checkpoint", "logging", "effprof", "unattributed")
PHASES = STEP_PHASES + OUTSIDE_PHASES

# What a micro-batch holds, summed over a step's micro-batches; `null` where it could not be counted.
# `pairs` are attended query-key pairs of a full-attention layer, `window_pairs` those of a sliding-window layer,
# `square_pairs` = sum of tokens x sequence length (what the conventions that ignore the mask assume).
# Encoder-decoders: `tokens` = `source_tokens` + `target_tokens`; `pairs` is the decoder's self-attention.
# `flops` holds a step's exact model FLOPs where no linear model in the other counters exists.
COUNTERS = (
    "samples",
    "positions",
    "tokens",
    "loss_tokens",
    "pairs",
    "window_pairs",
    "square_pairs",
    "source_tokens",
    "target_tokens",
    "source_pairs",
    "source_square_pairs",
    "cross_pairs",
    "flops",
)


class Header(msgspec.Struct, tag="header", tag_field="type", kw_only=True):
    """Opens every segment: who writes, and how its monotonic clock relates to wall time."""

    schema: str = LOG_SCHEMA
    run_id: str
    role: str  # "rank" or "node"
    rank: int
    node: int = 0
    local_rank: int = 0
    world_size: int = 1
    data_parallel_rank: int | None = None
    data_parallel_size: int | None = None
    attempt: int = 0
    segment: int = 0
    host: str = ""
    pid: int = 0
    device: dict[str, Any] = {}  # type, name, index, uuid, memory_bytes, compute_units
    monotonic_ns: int
    wall_s: float  # Unix time at `monotonic_ns`
    process_start_s: float  # Unix time


class Steps(msgspec.Struct, tag="steps", tag_field="type", kw_only=True):
    """A block of consecutive optimizer steps, one array per column, all of length `n`.

    Columns: `step` (the framework's optimizer-step index after the step), `end_ns`, `<phase>_ns` for `PHASES`
    that occurred, `device_<phase>_ns` where device events were read, `micro_batches`, `COUNTERS`, `loss` (what the
    optimizer saw; null where it was not finite or did not arrive in time), `gc_ns` (Python's garbage collector, already
    in the phases), and `profiled` = 1 for steps that a kernel window slowed.
    """

    n: int
    columns: dict[str, list[float | int | None]]


class Span(msgspec.Struct, tag="span", tag_field="type", kw_only=True):
    """Time outside any finished step (start-up, tail, an evaluation after the last step), by phase."""

    name: str  # one of PHASES
    start_ns: int
    end_ns: int
    inside_step: bool = False  # informative only: the time is already in a step's columns


class Memory(msgspec.Struct, tag="memory", tag_field="type", kw_only=True):
    """Allocator counters at the log interval, null on a device without a caching allocator; and the process's own."""

    monotonic_ns: int
    step: int
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    device_free_bytes: int | None = None
    device_total_bytes: int | None = None
    alloc_retries: int | None = None
    ooms: int | None = None
    process_rss_bytes: int | None = None
    process_peak_rss_bytes: int | None = None  # as the kernel counted it, not sampled
    training_thread_cpu_ns: int | None = None  # processor time of the thread that trains, since it began
    inactive_split_bytes: int | None = None  # free parts of blocks that are in use: fragmentation
    peak_inactive_split_bytes: int | None = None


class Experts(msgspec.Struct, tag="experts", tag_field="type", kw_only=True):
    """Tokens each expert received in one sampled micro-batch, per routed layer."""

    step: int
    layers: list[str]
    tokens_per_expert: list[list[int]]
    dropped: list[int | None] = []


class Probe(msgspec.Struct, tag="probe", tag_field="type", kw_only=True):
    """Node log: what the values named in `Telemetry` mean. One per probe at start."""

    probe: str
    devices: list[dict[str, Any]] = []  # key, name, uuid, pci_bus_id, memory_bytes, power_limit_w, ...
    readings: dict[str, dict[str, Any]] = {}  # NAME: {unit, scope, kind, reason}


class Telemetry(msgspec.Struct, tag="telemetry", tag_field="type", kw_only=True):
    """Node log: one sample of every reading, `<device key>.<reading>` → value (null with a reason in `missing`)."""

    monotonic_ns: int
    values: dict[str, float | int | None]
    missing: dict[str, str] = {}


class Kernels(msgspec.Struct, tag="kernels", tag_field="type", kw_only=True):
    """A kernel window: some steps recorded with the framework's profiler, reduced to their account."""

    monotonic_ns: int  # when its first step began
    first_step: int  # the framework's number of the last step before the window
    steps: int
    trigger: str  # "schedule", "file" or "signal"
    basis: str  # "device": kernels of an accelerator; "operators": operators of a CPU
    window_s: float
    lines: dict[str, float]  # line of the time account → seconds of the window; they sum to `window_s`
    by_phase: dict[str, dict[str, float]] = {}  # on "operators": host phase → line → seconds
    families: dict[str, float] = {}  # kernel family → seconds of device time
    # on "operators", of forward and backward: count; own_s; dispatch_s, the median of one that touches no data; and
    # fixed_s, the part of own_s that they would take with next to no data
    operators: dict[str, float] = {}
    account: dict[str, Any] = {}  # the rank's `kernel_account`; empty on "operators"
    cost: dict[str, float] = {}  # start_s, stop_s (training waited), export_s, reduce_s (it did not)
    trace: str = ""  # file beside the log that holds the raw trace, where it was kept
    problems: list[str] = []


# Name of the event that training begins; `data["step"]` is the optimizer step that it goes on from.
BEGAN = "began"


class Event(msgspec.Struct, tag="event", tag_field="type", kw_only=True):
    """Something worth a line: a warning, a disabled part, a non-finite value, an exception in training."""

    name: str
    monotonic_ns: int
    message: str = ""
    data: dict[str, Any] = {}


class End(msgspec.Struct, tag="end", tag_field="type", kw_only=True):
    """The closing line. A log without one was killed, or is still being written."""

    status: str  # "completed" or "failed"
    monotonic_ns: int
    reason: str = ""
    dropped_records: int = 0


Line = Header | Steps | Span | Memory | Experts | Kernels | Probe | Telemetry | Event | End


class FlopsRecord(msgspec.Struct, kw_only=True):
    """How a run's model FLOPs follow from its counters; see `effprof.workload.model.FlopsModel`.

    Each convention maps counter name → training FLOPs (forward + backward) per unit of that counter.
    """

    conventions: dict[str, dict[str, float]] = {}  # exact, megatron, palm, 6n
    source: str | None = None  # "closed_form", "operation_count", "given", or null
    reason: str = ""  # why `source` is null, or what the figure rests on
    counts: dict[str, Any] = {}  # the two independent counts of one micro-batch, side by side
    by_dtype: dict[str, float] = {}  # share of the matmul FLOPs per dtype, sums to 1
    recompute_share: float | None = None  # recomputed forward FLOPs over model FLOPs, null where unknown
    window: int | None = None
    causal: bool | None = None
    coverage: float | None = None
    uncounted: list[str] = []
    assumptions: list[str] = []
    seconds: float | None = None  # what counting took


class RunRecord(msgspec.Struct, kw_only=True):
    """`run.json`: what does not change from step to step. Written atomically, rewritten when more is known."""

    schema: str = RUN_SCHEMA
    id: str
    framework: str = "pytorch"
    framework_version: str = ""
    created_s: float = 0.0
    command: list[str] = []
    config: dict[str, Any] = {}  # precision, accumulate, micro_batch, ...: see `effprof.runlog.settings`, docs/facts.md
    model: dict[str, Any] = {}  # name, class, parameters_total, parameters_trainable, parameters_active, architecture
    flops: FlopsRecord = msgspec.field(default_factory=FlopsRecord)
    hardware: dict[str, Any] = {}  # name, vendor, memory_bytes, peak: {"flops_per_s", "dtype", "source", "parts"}, ...
    software: dict[str, Any] = {}
    parallel: dict[str, Any] = {}  # world_size, data_parallel_size, strategy, tensor, pipeline, context, expert
    # memory of one micro-batch: closed_form and fake_copy (predicted), tracked (live, when asked for), plan, reasons
    memory: dict[str, Any] = {}
    warnings: list[dict[str, str]] = []  # {"code", "message"}
