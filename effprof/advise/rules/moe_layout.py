"""Rules on the layout of mixture-of-experts layers: padding of capacity, expert parallelism, folding of meshes."""

from __future__ import annotations

from effprof.advise.facts import kernel_share, parallel_size
from effprof.advise.gains import gain_from_removed_share
from effprof.advise.layout import (
    SHARDED,
    communication_share,
    devices_per_node,
    exposed_communication,
    needs_devices,
    needs_kind,
)
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.advise.rules.moe import MEGATRON_MOE, moe_of
from effprof.analysis.model import Analysis, Evidence

EXPOSED_SHARDS = Threshold(
    "kernel_account: exposed all-gather and reduce-scatter ÷ window",
    0.20,
    "share of the kernel window",
    "published expert parallelism doubled the rate where gathering all experts was most of a step and lost 4 to 18 % "
    "inside one node, where it was not",
)
CAPACITY_PADDING = Threshold(
    "moe.layers.capacity_padding_share, mean",
    0.25,
    "share of capacity slots",
    "a capacity factor of 1.25 pads 20 % even with perfect balance",
)
SPLIT_EXPERTS = Threshold(
    "run.parallel.tensor while experts are not spread",
    1.0,
    "ranks",
    "splitting each expert's products over ranks makes small products smaller and reduces their outputs",
)
FOLDING_EXPOSED = Threshold(
    "kernel_account: exposed communication ÷ window",
    0.10,
    "share of the kernel window",
    "below it fewer collectives cannot pay for a new layout",
)


@rule(
    "moe-capacity-padding",
    area="moe",
    title="experts compute empty slots of their capacity",
    symptom="every expert is padded to the same number of tokens",
    thresholds=[CAPACITY_PADDING],
    lever="a smaller capacity factor, or grouped products without capacity",
    frameworks={"megatron": "--moe-grouped-gemm without --moe-pad-expert-input-to-capacity"},
    gain_basis="bound: the padded part of the experts' products and of their all-to-all; what is left of the factor "
    "and less regular products leave 40 to 85 % of it",
    risk="without padding shapes change from step to step: no CUDA graphs of these layers",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2211.15841"],
    system="moe",
)
def capacity_is_padded(run: Analysis) -> Match | None:
    """Mean padding of the layers with a known capacity."""
    found = [layer.capacity_padding_share for layer in moe_of(run).layers if layer.capacity_padding_share is not None]
    if not found:
        raise NotApplicable  # the model shows no capacity
    padding = sum(found) / len(found)
    if not CAPACITY_PADDING.is_crossed(padding):
        return None
    experts = kernel_share(run, "grouped_gemm") + communication_share(run, "all_to_all")
    if experts <= 0:
        raise Missing("the experts' products in a kernel window", "a window over whole steps of a grouped product")
    return Match(
        evidence=[
            CAPACITY_PADDING.saw(padding),
            Evidence(metric="kernel_account: grouped_gemm and all_to_all", value=experts, unit="share of window"),
        ],
        gain=gain_from_removed_share(padding * experts, (0.4, 0.65, 0.85)),
        knobs={"megatron": "--moe-grouped-gemm  # leave out --moe-pad-expert-input-to-capacity"},
    )


@rule(
    "moe-expert-parallel",
    area="moe",
    title="every device gathers all experts",
    symptom="sharded data parallelism moves the weights of experts that most tokens never meet",
    thresholds=[EXPOSED_SHARDS],
    lever="expert parallelism: spread the experts over ranks and send tokens instead of weights",
    frameworks={
        "megatron": "--expert-model-parallel-size N",
        "torchtitan": "parallelism.expert_parallel_degree = N",
    },
    gain_basis="bound: the exposed gathers and scatters. The experts' part of it goes and an all-to-all comes: 10 to "
    "75 %, widely spread as published pairs are (0.8 to 2.4 times)",
    risk="an all-to-all in every layer, and waiting for the rank with the busiest experts; loses inside one node",
    risk_level="high",
    sources=[
        "https://github.com/marin-community/marin/issues/7332",
        "https://github.com/marin-community/marin/issues/6979",
    ],
    change="ep",
    system="moe",
)
def all_experts_are_gathered(run: Analysis) -> Match | None:
    """Fully sharded experts whose gathers are exposed."""
    needs_devices(run)
    if run.moe is None or (run.moe.expert_parallel_size or 1) > 1:
        raise NotApplicable
    needs_kind(run, *SHARDED)
    exposed = communication_share(run, "all_gather", "reduce_scatter")
    if not EXPOSED_SHARDS.is_crossed(exposed):
        return None
    experts = max(len(layer.tokens_per_expert) for layer in run.moe.layers)
    size = next(n for n in range(min(devices_per_node(run), experts), 0, -1) if experts % n == 0)
    if size < 2:
        return None
    return Match(
        evidence=[EXPOSED_SHARDS.saw(exposed), Evidence(metric="experts", value=experts, unit="per layer")],
        gain=gain_from_removed_share(exposed, (0.1, 0.4, 0.75)),
        knobs={
            "megatron": f"--expert-model-parallel-size {size}",
            "torchtitan": f"parallelism.expert_parallel_degree = {size}",
        },
    )


@rule(
    "moe-parallel-folding",
    area="moe",
    title="experts are split by the attention's tensor parallelism",
    symptom="each expert's small products are cut once more, and every cut is reduced over ranks",
    thresholds=[SPLIT_EXPERTS, FOLDING_EXPOSED],
    lever="a mesh of its own for the experts: whole experts, spread over the tensor-parallel ranks",
    frameworks={"megatron": "--expert-tensor-parallel-size 1 --expert-model-parallel-size N"},
    gain_basis="bound: exposed communication. The experts' reductions go, attention's stay, an all-to-all comes: 15 to "
    "60 %",
    risk="the checkpoint's layout changes",
    risk_level="high",
    sources=["https://arxiv.org/abs/2504.14960", MEGATRON_MOE],
    system="moe",
)
def experts_are_split(run: Analysis) -> Match | None:
    """Tensor parallel with unspread experts, and communication shows."""
    needs_devices(run)
    if run.moe is None:
        raise NotApplicable
    tensor, expert = parallel_size(run, "tensor"), run.moe.expert_parallel_size or 1
    if not SPLIT_EXPERTS.is_crossed(tensor) or expert > 1:
        return None
    exposed = exposed_communication(run)
    if not FOLDING_EXPOSED.is_crossed(exposed):
        return None
    return Match(
        evidence=[SPLIT_EXPERTS.saw(tensor), FOLDING_EXPOSED.saw(exposed)],
        gain=gain_from_removed_share(exposed, (0.15, 0.35, 0.6)),
        knobs={"megatron": f"--expert-tensor-parallel-size 1 --expert-model-parallel-size {tensor}"},
    )
