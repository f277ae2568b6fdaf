"""Rules on splitting the sequence, and on hiding what tensor-parallel ranks exchange."""

from __future__ import annotations

from effprof.advise.facts import config, kernels, parallel_size, peak_memory_share
from effprof.advise.gains import gain_from_published, no_gain
from effprof.advise.layout import devices_per_node, exposed_communication, needs_devices
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis

MEMORY_TIGHT = Threshold(
    "memory.peak ÷ device memory", 0.9, "share", "below it there is room: splitting the sequence only adds traffic"
)
REDUCTIONS_PER_LAYER = Threshold(
    "kernel_account.communication.all_reduce.count ÷ steps ÷ layers",
    2.0,
    "all-reduces per layer and step",
    "tensor parallelism without sequence parallelism reduces four times a layer, with it not at all; gradient buckets "
    "are far fewer than layers",
    relation=">=",
)
ACTIVATIONS_SHARE = Threshold(
    "memory.activations_bytes ÷ peak_allocated_bytes",
    0.5,
    "share of the peak",
    "only activations shrink with the sequence: below half of the peak, shards of the states free more",
)
LONG_SEQUENCE = Threshold(
    "positions per sample", 8192, "positions", "below it a smaller micro-batch frees as much memory", relation=">="
)
ONE_SAMPLE = Threshold(
    "run.config.micro_batch", 1, "samples", "a micro-batch of several samples can be made smaller first", relation="<="
)
EXPOSED = Threshold(
    "kernel_account: exposed communication ÷ window",
    0.05,
    "share of the kernel window",
    "published overlap of tensor-parallel collectives brings 3 to 8 %: below this nothing is left to bring",
)


def _activations_share(run: Analysis) -> tuple[int, float]:
    activations, peak = run.memory.activations_bytes, run.memory.peak_allocated_bytes
    if activations is None or not peak:
        raise Missing("the activations' bytes", "train with EfficiencyCallback past the first step")
    return activations, activations / peak


@rule(
    "par-sp",
    area="parallelism",
    title="tensor-parallel ranks each keep the activations between the split layers",
    symptom="norms and dropouts work on the whole sequence on every rank of the tensor-parallel group",
    thresholds=[REDUCTIONS_PER_LAYER, MEMORY_TIGHT],
    lever="sequence parallelism inside the tensor-parallel group",
    frameworks={
        "pytorch": "parallelize_module(block, mesh['tp'], {'norm': SequenceParallel(), ...})",
        "megatron": "--sequence-parallel",
    },
    gain_basis="no throughput by itself: of 10 + 24 / T parts of a layer's activations the 10 shrink to 10 / T "
    "(Korthikanti et al., section 4.2, attention's square left out); room for less recompute or a larger micro-batch",
    risk="none on the numbers; the modules between split layers need a plan",
    risk_level="low",
    sources=["https://arxiv.org/abs/2205.05198"],
    system="baige",
)
def activations_are_replicated(run: Analysis) -> Match | None:
    """Tensor parallel by all-reduces, with memory full."""
    needs_devices(run)
    size = parallel_size(run, "tensor")
    if size < 2:
        raise NotApplicable
    filled = peak_memory_share(run)
    if not MEMORY_TIGHT.is_crossed(filled):
        return None
    layers = int(config(run, "layers"))
    per_layer = _all_reduces_per_step(run) / layers
    if not REDUCTIONS_PER_LAYER.is_crossed(per_layer):
        return None
    activations, _ = _activations_share(run)
    return Match(
        evidence=[REDUCTIONS_PER_LAYER.saw(per_layer), MEMORY_TIGHT.saw(filled)],
        gain=no_gain(),
        knobs={
            "lightning": "in configure_model: parallelize_module(block, self.device_mesh['tensor_parallel'], "
            "{'attention_norm': SequenceParallel(), 'ffn_norm': SequenceParallel()})",
            "pytorch": "parallelize_module(block, mesh['tp'], {'attention_norm': SequenceParallel(), "
            "'ffn_norm': SequenceParallel()})",
            "megatron": "--sequence-parallel",
        },
        memory_effect_bytes=-round(activations * 10 * (1 - 1 / size) / (10 + 24 / size)),
    )


def _all_reduces_per_step(run: Analysis) -> float:
    counts = []
    for account in kernels(run):
        family = account.kernels.get("communication.all_reduce")
        if account.steps:
            counts.append((family.count if family else 0) / len(account.steps))
    if not counts:
        raise Missing("steps in the kernel window", "EfficiencyCallback(kernel_window=True)")
    return sum(counts) / len(counts)


@rule(
    "par-async-tp",
    area="parallelism",
    title="tensor-parallel collectives stand in the way of their matrix products",
    symptom="every split layer waits for a whole collective before its product",
    thresholds=[EXPOSED],
    lever="cut collective and product into chunks that overlap (async tensor parallelism)",
    frameworks={
        "pytorch": "torch._inductor.config._micro_pipeline_tp = True; enable_symm_mem_for_group(group.group_name)",
        "megatron": "--tp-comm-overlap",
    },
    gain_basis="quartiles of three published pairs (3 to 8 %), never above the exposed communication of this run",
    risk="needs NVLink and torch.compile; symmetric memory takes device memory",
    risk_level="medium",
    sources=[
        "https://github.com/pytorch/torchtitan/blob/main/benchmarks/asyncTP_llama3_h100_2025-06_torchtitan.md",
        "https://gitee.com/ascend/MindSpeed/tree/master/docs/zh/features/communication-over-computation.md",
    ],
    change="async_tp",
    system="baige",
)
def tensor_collectives_are_exposed(run: Analysis) -> Match | None:
    """Tensor parallel inside a node, with exposed communication."""
    needs_devices(run)
    size = parallel_size(run, "tensor")
    if size < 2 or size > devices_per_node(run):
        raise NotApplicable
    exposed = exposed_communication(run)
    if not EXPOSED.is_crossed(exposed):
        return None
    return Match(
        evidence=[EXPOSED.saw(exposed)],
        gain=gain_from_published("async_tp", bound=1 / (1 - exposed) - 1),
        knobs={
            "pytorch": "torch._inductor.config._micro_pipeline_tp = True\n"
            "enable_symm_mem_for_group(mesh['tp'].get_group().group_name)\nmodel = torch.compile(model)",
            "megatron": "--tp-comm-overlap --sequence-parallel",
        },
    )


@rule(
    "par-cp",
    area="parallelism",
    title="one long sequence fills the device",
    symptom="a micro-batch of one sample, and its activations are most of a full memory",
    thresholds=[LONG_SEQUENCE, ONE_SAMPLE, MEMORY_TIGHT, ACTIVATIONS_SHARE],
    lever="split the sequence over two devices (context parallelism)",
    frameworks={
        "pytorch": "with context_parallel(mesh, buffers=[...], buffer_seq_dims=[...]): ...",
        "megatron": "--context-parallel-size 2",
        "torchtitan": "parallelism.context_parallel_degree = 2",
    },
    gain_basis="no throughput by itself, keys and values add traffic: half of the activations' memory, which allows "
    "less recompute or a longer sequence",
    risk="causal attention needs the two ends of the sequence on one rank to stay balanced",
    risk_level="medium",
    sources=[
        "https://arxiv.org/abs/2310.01889",
        "https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md",
    ],
    change="cp",
    system="baige",
)
def sequence_fills_the_device(run: Analysis) -> Match | None:
    """Long sequences, one a time, and a full device."""
    needs_devices(run)
    if parallel_size(run, "context") > 1:
        raise NotApplicable
    figures = run.efficiency
    if not figures.tokens_per_step or not figures.samples_per_step:
        raise NotApplicable  # no sequences
    length = figures.tokens_per_step / (1 - (figures.padding_share or 0.0)) / figures.samples_per_step
    if not LONG_SEQUENCE.is_crossed(length):
        return None
    samples, filled = int(config(run, "micro_batch")), peak_memory_share(run)
    activations, share = _activations_share(run)
    crossed = (
        ONE_SAMPLE.is_crossed(samples),
        MEMORY_TIGHT.is_crossed(filled),
        ACTIVATIONS_SHARE.is_crossed(share),
    )
    if not all(crossed):
        return None
    return Match(
        evidence=[LONG_SEQUENCE.saw(length), MEMORY_TIGHT.saw(filled), ACTIVATIONS_SHARE.saw(share)],
        gain=no_gain(),
        knobs={
            "pytorch": "with context_parallel(mesh['cp'], buffers=[input_ids, labels], buffer_seq_dims=[1, 1]):",
            "megatron": "--context-parallel-size 2",
            "torchtitan": "parallelism.context_parallel_degree = 2",
        },
        memory_effect_bytes=-round(activations / 2),
    )
