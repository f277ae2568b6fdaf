"""Rules on the collectives of sharded data parallelism: whether they come in time, and how many bytes they move."""

from __future__ import annotations

from effprof.advise.facts import config
from effprof.advise.gains import gain_from_removed_share
from effprof.advise.layout import communication_share, gathered_bytes, layout, needs_devices, needs_kind, node_count
from effprof.advise.rule import Match, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis

PREFETCH = Threshold(
    "kernel_account.communication.all_gather.exposed_s ÷ window_s",
    0.05,
    "share of the kernel window",
    "the first gather of a step cannot be hidden: with ten units or more it is within a few per cent",
)
SHARDS_HEAVY = Threshold(
    "kernel_account: exposed all-gather and reduce-scatter ÷ window",
    0.20,
    "share of the kernel window",
    "below it quantised collectives cost more accuracy than they can bring speed",
)


@rule(
    "com-prefetch-shards",
    area="communication",
    title="shards are gathered only when they are needed",
    symptom="prefetching of the next unit's parameters is off",
    thresholds=[PREFETCH],
    lever="gather the next unit while this one computes",
    frameworks={
        "lightning": "FSDPStrategy(backward_prefetch=BackwardPrefetch.BACKWARD_PRE, forward_prefetch=True)",
        "pytorch": "FullyShardedDataParallel(..., backward_prefetch=BackwardPrefetch.BACKWARD_PRE)",
        "deepspeed": '"zero_optimization": {"overlap_comm": true}',
    },
    gain_basis="bound: the exposed all-gathers. The first unit's stays and memory limits how far ahead: 30 to 80 %",
    risk="memory of one more gathered unit",
    risk_level="low",
    sources=["https://pytorch.org/docs/stable/fsdp.html", "https://arxiv.org/abs/2304.11277"],
    change="comm_overlap",
    system="baige",
)
def shards_come_late(run: Analysis) -> Match | None:
    """FSDP1 without backward prefetch, or DeepSpeed without overlap."""
    needs_devices(run)
    kind = needs_kind(run, "fsdp", "deepspeed")
    is_off = layout(run, "backward_prefetch") == "none" if kind == "fsdp" else not layout(run, "overlap_comm")
    if not is_off:
        return None
    exposed = communication_share(run, "all_gather")
    if not PREFETCH.is_crossed(exposed):
        return None
    knobs = {
        "fsdp": {
            "lightning": "Trainer(strategy=FSDPStrategy(backward_prefetch=BackwardPrefetch.BACKWARD_PRE))",
            "pytorch": "FullyShardedDataParallel(module, backward_prefetch=BackwardPrefetch.BACKWARD_PRE)",
        },
        "deepspeed": {
            "lightning": "Trainer(strategy=DeepSpeedStrategy(overlap_comm=True))",
            "deepspeed": '"zero_optimization": {"overlap_comm": true}',
        },
    }
    return Match(
        evidence=[PREFETCH.saw(exposed)],
        gain=gain_from_removed_share(exposed, (0.3, 0.55, 0.8)),
        knobs=knobs[kind],
        memory_effect_bytes=gathered_bytes(run) // max(1, int(run.run.parallel.get("units") or 1)),
    )


@rule(
    "com-quantised-shards",
    area="communication",
    title="sharded parameters and gradients travel between nodes in full precision",
    symptom="ZeRO stage 3 over several nodes with exposed gathers and scatters",
    thresholds=[SHARDS_HEAVY],
    lever="ZeRO++: quantised weights and gradients, and a second shard inside the node",
    frameworks={
        "deepspeed": '"zero_quantized_weights": true, "zero_quantized_gradients": true, "zero_hpz_partition_size": N'
    },
    gain_basis="bound: exposed gathers and scatters. Four times fewer bytes between nodes, less where latency or "
    "quantisation costs: 25 to 70 % of it",
    risk="weights in int8 and gradients in int4 on their way: compare the loss; memory of the second shard",
    risk_level="high",
    sources=["https://arxiv.org/abs/2306.10209", "https://www.deepspeed.ai/tutorials/zeropp/"],
    system="general",
)
def shards_are_sent_whole(run: Analysis) -> Match | None:
    """DeepSpeed stage 3 across nodes."""
    needs_devices(run)
    needs_kind(run, "deepspeed")
    if layout(run, "zero_stage") != 3 or node_count(run) < 2:
        raise NotApplicable
    exposed = communication_share(run, "all_gather", "reduce_scatter")
    if not SHARDS_HEAVY.is_crossed(exposed):
        return None
    inside = max(1, run.run.world_size // node_count(run))
    return Match(
        evidence=[SHARDS_HEAVY.saw(exposed)],
        gain=gain_from_removed_share(exposed, (0.25, 0.45, 0.7)),
        knobs={
            "deepspeed": '"zero_optimization": {"stage": 3, "zero_quantized_weights": true, '
            f'"zero_quantized_gradients": true, "zero_hpz_partition_size": {inside}}}'
        },
    )


@rule(
    "com-fp8-gather",
    area="communication",
    title="weights are gathered in bf16 and multiplied in fp8",
    symptom="float8 training whose sharded weights are cast after they were gathered",
    thresholds=[PREFETCH],
    lever="cast before the gather (float8 all-gather)",
    frameworks={
        "pytorch": "Float8LinearConfig(enable_fsdp_float8_all_gather=True)",
        "torchtitan": "float8.enable_fsdp_float8_all_gather = true",
    },
    gain_basis="bound: half of the gathered bytes, of those that are exposed: 50 to 100 % of the half, as norms and "
    "embeddings stay in bf16",
    risk="only with tensorwise scaling",
    risk_level="low",
    sources=["https://dev-discuss.pytorch.org/t/enabling-float8-all-gather-in-fsdp2/2359"],
    change="fp8",
    system="general",
)
def weights_are_gathered_wide(run: Analysis) -> Match | None:
    """FSDP2 with fp8 products and 2-byte gathers."""
    needs_devices(run)
    needs_kind(run, "fsdp2")
    if not any(name.startswith("fp8") for name in run.hardware.peak_parts) and "float8" not in str(
        config(run, "precision")
    ):
        raise NotApplicable
    exposed = communication_share(run, "all_gather")
    if not PREFETCH.is_crossed(exposed):
        return None
    return Match(
        evidence=[PREFETCH.saw(exposed)],
        gain=gain_from_removed_share(exposed / 2, (0.5, 0.8, 1.0)),
        knobs={
            "pytorch": "convert_to_float8_training(model, config=Float8LinearConfig("
            "enable_fsdp_float8_all_gather=True))",
            "torchtitan": "float8.enable_fsdp_float8_all_gather = true",
        },
    )
