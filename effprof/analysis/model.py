"""What an analysis is: the types behind `effprof analyze --json`, each key with its meaning.

Key names are a contract: keys may be added within a schema number, never renamed. `docs/schema.md` is made from here.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from effprof.analysis.memory_model import MemoryFigures as MemoryFigures
from effprof.analysis.timeline_model import Timeline
from effprof.trace.summary import RankKernels

SCHEMA = "effprof.analysis/1"

# The only list of where wall clock goes, in the order reports show it.
ACCOUNT_LINES = (
    "startup",
    "compile",
    "step.input_wait",
    "step.host_to_device",
    "step.forward",
    "step.backward",
    "step.optimizer",
    "step.generation",
    "step.exposed_communication",
    "step.pipeline_bubble",
    "step.host_gap",
    "step.other",
    "evaluation",
    "checkpoint",
    "logging",
    "effprof",
    "restart",
    "lost_steps",
    "unattributed",
)


def _says(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


Interval = tuple[float, float]
Ci95 = Annotated[Interval | None, _says("95 % interval [low, high]; null below 5 steady steps or without a value")]


class Share(msgspec.Struct, kw_only=True):
    """A share of the device's peak, never without what it rests on."""

    value: Annotated[float | None, _says("share of the peak, 0 … 1; above 1 it is refused (warning mfu_above_peak)")]
    ci95: Ci95 = None
    convention: Annotated[str, _says("FLOPs convention the value is in")] = "exact"
    dtype: Annotated[str | None, _says("dtype the matmuls ran in; `mixed` where several")] = None
    peak_flops_per_s: Annotated[float | None, _says("dense peak of one device, FLOP/s")] = None
    peak_source: Annotated[str | None, _says("where the peak comes from; says `measured ceiling` for a CPU")] = None
    peak_kind: Annotated[str | None, _says("`datasheet`, `given` or `measured_ceiling`")] = None


class ConventionFigures(msgspec.Struct, kw_only=True):
    """One way of counting FLOPs, over the steady steps."""

    flops_per_step: Annotated[float | None, _says("model FLOPs of the whole job's optimizer step, mean")] = None
    flops_per_token: Annotated[float | None, _says("model FLOPs per useful token")] = None
    mfu: Annotated[float | None, _says("MFU in this convention, 0 … 1")] = None


class Conventions(msgspec.Struct, kw_only=True):
    """All four conventions from the same run; those that do not apply to the model hold nulls."""

    exact: Annotated[ConventionFigures, _says("the attended pairs that the mask leaves")]
    megatron: Annotated[ConventionFigures, _says("T/2 per token, windows ignored")]
    palm: Annotated[ConventionFigures, _says("T per token, windows ignored")]
    six_n: Annotated[ConventionFigures, _says("6 · active parameters · tokens")] = msgspec.field(name="6n")


class StepCounts(msgspec.Struct, kw_only=True):
    """How many steps there are, and which of them are steady."""

    total: Annotated[int, _says("optimizer steps that every rank finished, repeated ones included")]
    steady: Annotated[int, _says("steps the efficiency figures rest on: all but a leading prefix of each attempt")]
    repeated: Annotated[int, _says("steps that an earlier attempt had already made")] = 0
    profiled: Annotated[int, _says("steps in a kernel window: never steady, as recording slows them")] = 0
    rules: Annotated[list[str], _says("per attempt, how the leading prefix was found")] = []


class StepTime(msgspec.Struct, kw_only=True):
    """Duration of a steady optimizer step of the job, evaluation and checkpoint taken out."""

    median: float | None = None
    p95: float | None = None
    ci95: Ci95 = None


class Rate(msgspec.Struct, kw_only=True):
    """A rate over the steady steps, one value per step."""

    median: float | None = None
    p5: Annotated[float | None, _says("5th percentile: the slow steps")] = None
    ci95: Ci95 = None


class Efficiency(msgspec.Struct, kw_only=True):
    """How much of the accelerators the run uses, over its steady steps."""

    mfu: Annotated[Share, _says("model FLOPs ÷ steady step time ÷ (peak × devices)")]
    mfu_wall: Annotated[Share, _says("the same over the whole wall clock; repeated steps count once")]
    hfu: Annotated[Share, _says("with recompute and padded positions; null where the recompute is not known")]
    conventions: Conventions
    steps: StepCounts
    tokens_per_step: Annotated[float | None, _says("useful tokens of the whole job's step, mean")]
    samples_per_step: Annotated[float | None, _says("samples of the whole job's step, mean")]
    padding_share: Annotated[float | None, _says("1 − tokens ÷ positions")]
    loss_token_share: Annotated[float | None, _says("tokens with a label ÷ tokens")]
    step_time_s: StepTime
    tokens_per_s: Rate
    tokens_per_s_per_device: Rate
    samples_per_s: Rate
    model_flops_per_s_per_device: Annotated[Rate, _says("exact convention; known without a peak")]


class Account(msgspec.Struct, kw_only=True):
    """Every second from the first attempt's process start to the last record, in exactly one line."""

    basis: Annotated[str, _says("`host` (spans of the training thread), `device` (events) or `kernel` (a trace)")]
    wall_s: Annotated[float, _says("seconds; the lines sum to it")]
    lines: Annotated[
        dict[str, float],
        _says("NAME: seconds. 0 is measured and zero; a line that this basis cannot measure is absent"),
    ]


class OperatorFigures(msgspec.Struct, kw_only=True):
    """What the operators of forward and backward take on a CPU, scaled from its kernel windows to all steps."""

    per_step: Annotated[float, _says("calls in one step, mean over ranks")]
    dispatch_s: Annotated[float, _says("median of one that touches no data: what calling one takes")]
    fixed_share: Annotated[
        float, _says("share of the steps' time paid however few tokens: host gaps and each operator's fixed part")
    ]
    product_share: Annotated[float, _says("share of the steps' time in matrix products and attention")]


class Goodput(msgspec.Struct, kw_only=True):
    """Share of the wall clock in optimizer steps whose result was kept."""

    value: Annotated[float | None, _says("0 … 1; 1 less everything in `lost`. Null without a finished step")] = None
    lost: Annotated[dict[str, float], _says("line of the account: its share of the wall clock")] = {}


class MoeLayer(msgspec.Struct, kw_only=True):
    """Load of one routed layer, summed over the sampled micro-batches and the data-parallel ranks."""

    name: str
    tokens_per_expert: list[int]
    imbalance: Annotated[float | None, _says("busiest expert ÷ mean over all samples; 1 is even")]
    batch_imbalance: Annotated[float | None, _says("median over the sampled micro-batches of the same ratio")] = None
    global_batch_imbalance: Annotated[
        float | None, _says("median over steps, the ranks' micro-batches together: what the router learned (quality)")
    ] = None
    speed_bound: Annotated[
        float | None,
        _says("slowest expert-parallel rank ÷ mean, median over micro-batches: how much longer the experts take"),
    ] = None
    speed_bound_basis: Annotated[
        str, _says("`expert_parallel_rank`, or `expert` where it is not known which experts share a rank")
    ] = "expert"
    dropped_share: Annotated[float | None, _says("assignments dropped ÷ assignments made")] = None
    capacity_padding_share: Annotated[
        float | None,
        _says(
            "capacity slots without a token ÷ slots; null unless `run.model.expert_capacity` is on record: no router "
            "read so far computes empty slots (the Switch layers of transformers skip them)"
        ),
    ] = None


class Moe(msgspec.Struct, kw_only=True):
    """Expert load of a mixture-of-experts model."""

    layers: list[MoeLayer]
    imbalance: Annotated[float | None, _says("mean over layers")]
    samples: Annotated[int, _says("micro-batches looked at, over all ranks")] = 0
    speed_bound: Annotated[float | None, _says("mean over layers")] = None
    global_batch_imbalance: Annotated[float | None, _says("mean over layers")] = None
    expert_parallel_size: Annotated[int | None, _says("ranks that a layer's experts are spread over")] = None
    all_to_all_exposed_share: Annotated[
        float | None, _says("all-to-all outside compute ÷ the kernel window's time; null without one in a window")
    ] = None
    grouped_gemm_efficiency: Annotated[
        float | None, _says("FLOP/s of grouped GEMMs ÷ FLOP/s of the dense GEMMs in the same window")
    ] = None


class RankFigures(msgspec.Struct, kw_only=True):
    """One rank beside the others."""

    rank: int
    host: str
    device: Annotated[str, _says("name of the device, with its index where there are several")]
    data_parallel_rank: int | None
    steps: int
    step_time_s: StepTime
    tokens_per_s: Annotated[float | None, _says("median; tokens of this rank's own batch")]
    account: Account
    training_thread_busy: Annotated[
        float | None, _says("processor time of the training thread ÷ wall clock, over the steady steps, 0 … 1")
    ] = None


class Spread(msgspec.Struct, kw_only=True):
    """How far ranks lie apart in one quantity (medians over steady steps)."""

    lowest: float
    median: float
    highest: float
    lowest_rank: int
    highest_rank: int


class RankSpread(msgspec.Struct, kw_only=True):
    """Numbers that show a straggler. Ranks that wait for it spend that time in backward: it waits least itself."""

    step_time_s: Spread | None = None
    input_wait_s: Spread | None = None
    forward_s: Spread | None = None
    backward_s: Spread | None = None


class DeviceGroup(msgspec.Struct, kw_only=True):
    """Devices of one kind in the job."""

    name: str
    type: str
    count: int
    memory_bytes: int | None = None


class TelemetryFigures(msgspec.Struct, kw_only=True):
    """One reading of one device on one node, summarised."""

    node: int
    device: str
    reading: str
    unit: str = ""
    scope: str = ""
    kind: Annotated[str, _says("`gauge`: mean, lowest, highest; `counter`: increase over the run")] = "gauge"
    mean: float | None = None
    lowest: float | None = None
    highest: float | None = None
    increase: float | None = None
    samples: int = 0
    reason: Annotated[str | None, _says("why there is no value")] = None


class Hardware(msgspec.Struct, kw_only=True):
    """What the job ran on."""

    devices: list[DeviceGroup]
    hosts: list[str]
    memory_bandwidth_bytes_per_s: Annotated[float | None, _says("of one device")] = None
    interconnect_bytes_per_s: Annotated[float | None, _says("of one device")] = None
    peak_parts: Annotated[dict[str, Any], _says("dtype: its share of the FLOPs and its peak")] = {}
    ceilings: Annotated[dict[str, float], _says("dtype: FLOP/s of the best matrix product measured here")] = {}
    telemetry: list[TelemetryFigures] = []


class RunFacts(msgspec.Struct, kw_only=True):
    """Which run this is, and how it ended."""

    id: str
    path: str
    framework: str
    framework_version: str = ""
    world_size: Annotated[int, _says("processes of the last attempt, one device each")]
    attempts: Annotated[int, _says("starts of the job in this directory")]
    started_at: Annotated[str, _says("start of the first attempt's first process, ISO 8601, UTC")]
    ended_at: Annotated[str, _says("last record, ISO 8601, UTC")]
    ended: Annotated[str, _says("`completed`, `failed`, `killed` or `running`")]
    ended_reason: Annotated[str, _says("what the closing line says; empty without one")] = ""
    model: dict[str, Any] = {}
    config: dict[str, Any] = {}
    parallel: dict[str, Any] = {}
    software: dict[str, Any] = {}
    command: list[str] = []
    flops: Annotated[dict[str, Any], _says("how the FLOPs were counted: source, counts, coverage, assumptions")] = {}


class Claimed(msgspec.Struct, kw_only=True):
    """What another tool's log says of itself: medians of what it prints, null where it prints none."""

    mfu: Annotated[float | None, _says("0 … 1, of the tool's own peak and convention")] = None
    tflops_per_device: Annotated[float | None, _says("TFLOP/s, as the tool counts them")] = None
    tokens_per_s: Annotated[float | None, _says("as printed: see the scope")] = None
    tokens_per_s_scope: Annotated[str | None, _says("`job`, or `device` where the tool prints a device's rate")] = None


class Source(msgspec.Struct, kw_only=True):
    """Which tool's log this is."""

    format: Annotated[str, _says("`megatron-lm`, `torchtitan`, `hf-trainer`, `nanogpt`, …")]
    steps: Annotated[int, _says("step records used")]
    claimed: Claimed


class Evidence(msgspec.Struct, kw_only=True):
    """A number from this run that a finding rests on."""

    metric: str
    value: float | None
    unit: str
    threshold: float | None = None


class Bar(msgspec.Struct, kw_only=True):
    """One loss on the way from the dense peak to `mfu_wall`."""

    name: Annotated[str, _says("what took it; a line of the account, or a part of the time computing")]
    share: Annotated[float, _says("of peak × devices × wall clock; the bars sum to 1 − mfu_wall")]
    seconds: Annotated[float, _says("share × wall clock")]
    evidence: Annotated[list[Evidence], _says("the numbers it is made from")] = []


class Gain(msgspec.Struct, kw_only=True):
    """Relative change of useful tokens (or samples) per second: 0.12 is 12 % more."""

    low: float
    likely: float
    high: float
    bound: Annotated[float, _says("what this run's own account allows at most; no value lies above it")]
    basis: Annotated[
        str, _says("`steady`: of the throughput of steady steps; `wall`: of useful work over the whole wall clock")
    ] = "steady"


class Finding(msgspec.Struct, kw_only=True):
    """Something to change, with its evidence and what it would bring."""

    id: str
    area: str
    title: str
    evidence: list[Evidence]
    lever: str
    knobs: dict[str, str]
    gain: Gain
    memory_effect_bytes: int | None
    risk: str
    risk_level: Annotated[str, _says("`low`, `medium` or `high`; weighs the order of findings")] = "low"
    sources: list[str]
    changes: Annotated[dict[str, Any], _says("what `effprof verify` applies; empty where only a person can")] = {}
    verified: Annotated[bool, _says("a trial of this very run confirmed it")] = False
    trials: Annotated[int, _says("verified trials on this machine that shaped the gain")] = 0


class NotEvaluated(msgspec.Struct, kw_only=True):
    """A rule that this run's record could not answer."""

    rule: str
    missing: Annotated[str, _says("what was not recorded")]
    record: Annotated[str, _says("how to record it")]


class Warning(msgspec.Struct, kw_only=True):
    """What a reader of the numbers should know, and why a number is missing."""

    code: str
    message: str


class Analysis(msgspec.Struct, kw_only=True):
    """Everything known about one run."""

    schema: Annotated[str, _says("names this document's keys")] = SCHEMA
    run: RunFacts
    source: Annotated[Source | None, _says("null for effprof's own runs and for traces")] = None
    efficiency: Efficiency
    account: Annotated[Account, _says("mean over ranks")]
    goodput: Goodput = msgspec.field(default_factory=Goodput)
    waterfall: Annotated[list[Bar], _says("empty where there is no `mfu_wall`")] = []
    kernel_account: Annotated[dict[str, RankKernels], _says("RANK: {…}; empty without a trace or kernel window")] = {}
    operators: Annotated[OperatorFigures | None, _says("null without a kernel window on a CPU")] = None
    memory: MemoryFigures
    moe: Annotated[Moe | None, _says("null where no expert load was recorded")] = None
    ranks: list[RankFigures]
    rank_spread: Annotated[RankSpread | None, _says("null with one rank")] = None
    hardware: Hardware
    findings: Annotated[list[Finding], _says("what to change, the first to try on top")] = []
    not_evaluated: Annotated[list[NotEvaluated], _says("rules that this run's record could not answer")] = []
    warnings: list[Warning] = []
    timeline: Annotated[Timeline | None, _says("null unless asked for: `effprof report` draws it")] = None
