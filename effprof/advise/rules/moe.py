"""Rules on mixture-of-experts layers: the experts' products, their load, and the traffic between their ranks."""

from __future__ import annotations

from math import log, sqrt

from effprof.advise.facts import config, device_type, kernel_share, needs_accelerator, parallel_size, step_share
from effprof.advise.gains import (
    clip_gain,
    gain_from_faster_part,
    gain_from_published,
    gain_from_removed_share,
    no_gain,
)
from effprof.advise.layout import (
    communication_share,
    devices_per_node,
    needs_devices,
)
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence, Gain, Moe

MEGATRON_MOE = "https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/transformer/moe/README.md"
WATCH_ROUTERS = "EfficiencyCallback(routers=[...]) names the modules that route"

EAGER_EXPERTS = Threshold(
    "experts ÷ grouped products (1 is one product for all experts)",
    1.0,
    "products per weight and layer",
    "a loop over experts launches as many small products as there are experts",
)
GROUPED_EFFICIENCY = Threshold(
    "moe.grouped_gemm_efficiency",
    0.5,
    "ratio",
    "tokens are cut into E groups, which costs partial tiles: half of the dense rate is what well-fed groups lose",
    relation="<",
)
GROUPED_SHARE = Threshold(
    "kernel_account.grouped_gemm.share", 0.10, "share of the kernel window", "below it a third of it is within 3 %"
)
ALL_TO_ALL = Threshold(
    "moe.all_to_all_exposed_share",
    0.10,
    "share of the kernel window",
    "Megatron's guide calls 30 to 40 % usual without overlap; well-overlapped runs stay under 10 %",
)
OUTSIDE_NODE = Threshold(
    "run.parallel.expert ÷ devices per node",
    1.0,
    "ratio",
    "above it tokens cross the node's network, for which plain all-to-all is not made",
)
SPEED_BOUND = Threshold(
    "moe.speed_bound",
    1.2,
    "slowest expert-parallel rank ÷ mean",
    "of experts that take half of a step, 20 % more work on one rank is 8 % of the step",
)
QUALITY = Threshold(
    "moe.global_batch_imbalance",
    3.0,
    "busiest expert ÷ mean",
    "routers under an auxiliary loss settle below 2 over a global batch; three times the mean is a collapsing router",
)
DROPPED = Threshold(
    "moe.layers.dropped_share", 0.01, "share of assignments", "dropped tokens skip the layer: 1 % is above noise"
)

# Tokens per expert and micro-batch, at least → low, likely and high gain of grouped products on a CPU.
# benchmarks/experts.py, whole steps of small Mixtral models on 2 cores: 20 % at 512 tokens, 34 % at 256, 22 to 64 % at
# 128, 2.7 and 6 times at 32 and 64.
GROUPING_ON_CPU = (
    (400.0, (0.08, 0.18, 0.28)),
    (180.0, (0.15, 0.28, 0.4)),
    (90.0, (0.2, 0.35, 0.7)),
    (0.0, (0.5, 1.2, 2.0)),
)
MANY_TOKENS = 180.0


def moe_of(run: Analysis) -> Moe:
    """The experts' load; ends a rule for dense models, raises `Missing` where it was not recorded."""
    if run.moe is None:
        total, active = run.run.model.get("parameters_total"), run.run.model.get("parameters_active")
        if total and active and active < total:
            raise Missing("the load of the experts", WATCH_ROUTERS)
        raise NotApplicable
    return run.moe


def _all_to_all(run: Analysis) -> float:
    found = moe_of(run)
    if (found.expert_parallel_size or 0) < 2:
        raise NotApplicable
    if found.all_to_all_exposed_share is not None:
        return found.all_to_all_exposed_share
    return communication_share(run, "all_to_all")


@rule(
    "moe-grouped-gemm",
    area="moe",
    title="experts are computed one after another",
    symptom="a loop over experts launches a small matrix product for each",
    thresholds=[EAGER_EXPERTS],
    lever="one grouped matrix product over all experts",
    frameworks={
        "huggingface": 'model.set_experts_implementation("grouped_mm")',
        "pytorch": "torch._grouped_mm over experts' weights in one tensor",
        "megatron": "--moe-grouped-gemm",
    },
    gain_basis="accelerators: quartiles of eleven published pairs (5 to 20 %). CPUs: from 180 tokens per expert on 20 "
    "to 90 % of what operators take without data (operators.fixed_share); without a kernel window and below, by tokens "
    "per expert, as measured with benchmarks/experts.py, the fewer the more. Never above forward and backward",
    risk="sums run in another order; on an accelerator without a grouped kernel the loop comes back",
    risk_level="low",
    sources=[
        "https://arxiv.org/abs/2211.15841",
        "https://huggingface.co/docs/transformers/main/en/experts_interface",
        "https://gitee.com/ascend/MindSpeed/tree/master/docs/zh/features/megatron_moe/megatron-moe-gmm.md",
    ],
    change="moe_grouped_gemm",
    system="moe",
)
def experts_one_by_one(run: Analysis) -> Match | None:
    """A transformers model whose experts are a Python loop."""
    if run.moe is None and "experts_implementation" not in run.run.config:
        raise NotApplicable
    if config(run, "experts_implementation") != "eager":
        return None
    found = moe_of(run)
    layer = max(found.layers, key=lambda each: len(each.tokens_per_expert))
    experts = len(layer.tokens_per_expert)
    if not EAGER_EXPERTS.is_crossed(experts):
        return None
    computing = step_share(run, "step.forward") + step_share(run, "step.backward")
    tokens = sum(layer.tokens_per_expert) / experts / max(1, found.samples)
    return Match(
        evidence=[
            EAGER_EXPERTS.saw(experts),
            Evidence(metric="tokens per expert and micro-batch", value=tokens, unit="tokens"),
            Evidence(metric="account: forward and backward", value=computing, unit="share of step time"),
        ],
        gain=_gain_of_grouping(run, tokens, gain_from_removed_share(computing, (1, 1, 1)).bound),
        knobs={
            "huggingface": 'model.set_experts_implementation("grouped_mm")',
            "lightning": 'self.model.set_experts_implementation("grouped_mm")  # in configure_model',
            "megatron": "--moe-grouped-gemm",
        },
        changes={"experts_implementation": "grouped_mm"},
    )


def _gain_of_grouping(run: Analysis, tokens: float, bound: float) -> Gain:
    if device_type(run) != "cpu":
        return gain_from_published("moe_grouped_gemm", bound)
    if run.operators is not None and tokens >= MANY_TOKENS:
        # an expert's products are large enough: what grouping saves is calling operators for each expert
        low, likely, high = (
            gain_from_removed_share(part * run.operators.fixed_share, (1, 1, 1)).high for part in (0.2, 0.5, 0.9)
        )
        return clip_gain(low, likely, high, bound)
    low, likely, high = next(gains for least, gains in GROUPING_ON_CPU if tokens >= least)
    return clip_gain(low, likely, high, bound)


@rule(
    "moe-small-groups",
    area="moe",
    title="grouped products run far below the dense ones",
    symptom="each expert gets too few tokens to fill its tiles",
    thresholds=[GROUPED_EFFICIENCY, GROUPED_SHARE],
    lever="more tokens per expert: a larger micro-batch, or experts spread over more ranks",
    frameworks={
        "lightning": "a larger DataLoader(batch_size=...) with a smaller accumulate_grad_batches",
        "megatron": "--micro-batch-size 2N, or --expert-model-parallel-size 2N",
        "torchtitan": "training.local_batch_size, parallelism.expert_parallel_degree",
    },
    gain_basis="bound: grouped products at the dense rate of the same window; doubling the tokens of an expert makes "
    "them 1.1 to 1.6 times faster, as published grouped kernels do",
    risk="memory of the larger micro-batch; traffic of wider expert parallelism",
    risk_level="medium",
    sources=[MEGATRON_MOE, "https://arxiv.org/abs/2211.15841"],
    change="moe_grouped_gemm",
    system="moe",
)
def groups_are_small(run: Analysis) -> Match | None:
    """Grouped products below half of the dense rate, with a share of the window that matters."""
    if run.moe is None:
        raise NotApplicable
    needs_accelerator(run)
    efficiency, share = run.moe.grouped_gemm_efficiency, kernel_share(run, "grouped_gemm")
    if not GROUPED_SHARE.is_crossed(share):
        return None
    if efficiency is None:
        raise Missing("the shapes of grouped and dense products", "a kernel window with record_shapes")
    if not GROUPED_EFFICIENCY.is_crossed(efficiency):
        return None
    return Match(
        evidence=[GROUPED_EFFICIENCY.saw(efficiency), GROUPED_SHARE.saw(share)],
        gain=gain_from_faster_part(share, (1.1, 1.3, 1.6), limit=1 / efficiency),
        knobs={
            "lightning": "DataLoader(batch_size=2 * B), Trainer(accumulate_grad_batches=A // 2)",
            "megatron": f"--expert-model-parallel-size {2 * parallel_size(run, 'expert')}",
            "torchtitan": f"parallelism.expert_parallel_degree = {2 * parallel_size(run, 'expert')}",
        },
    )


@rule(
    "moe-a2a-overlap",
    area="moe",
    title="computation waits for the all-to-all of tokens",
    symptom="dispatch and combine of tokens run while the device computes nothing",
    thresholds=[ALL_TO_ALL],
    lever="overlap the all-to-all with another micro-batch or the shared expert",
    frameworks={
        "megatron": "--overlap-moe-expert-parallel-comm --delay-wgrad-compute, or --moe-shared-expert-overlap",
    },
    gain_basis="bound: the exposed all-to-all. Overlap hides 30 to 80 % of it: the first and the last micro-batch have "
    "nothing to hide behind, and published pairs (median 31 %) come from runs with more of it",
    risk="memory of two micro-batches; kernels share the device with communication",
    risk_level="medium",
    sources=[MEGATRON_MOE, "https://arxiv.org/abs/2412.19437", "https://github.com/pytorch/torchtitan/pull/2107"],
    change="moe_dispatch_overlap",
    system="moe",
)
def all_to_all_is_exposed(run: Analysis) -> Match | None:
    """Experts over ranks, with exposed all-to-all."""
    needs_devices(run)
    exposed = _all_to_all(run)
    if not ALL_TO_ALL.is_crossed(exposed):
        return None
    return Match(
        evidence=[ALL_TO_ALL.saw(exposed)],
        gain=gain_from_removed_share(exposed, (0.3, 0.55, 0.8)),
        knobs={
            "megatron": "--overlap-moe-expert-parallel-comm --delay-wgrad-compute\n"
            "# with shared experts: --moe-shared-expert-overlap",
        },
    )


@rule(
    "moe-dispatcher",
    area="moe",
    title="tokens cross nodes by a plain all-to-all",
    symptom="an expert-parallel group larger than a node, and its traffic shows",
    thresholds=[OUTSIDE_NODE, ALL_TO_ALL],
    lever="a dispatcher made for two kinds of links (DeepEP, HybridEP), or experts inside a node",
    frameworks={"megatron": "--moe-token-dispatcher-type flex", "torchtitan": "parallelism.expert_parallel_degree"},
    gain_basis="bound: the exposed all-to-all. Each token is sent once per node instead of once per expert, which "
    "leaves at least its volume over the slow link: 30 to 75 % goes (published: 31 and 67 % on whole steps)",
    risk="kernels are specific to hardware and driver",
    risk_level="medium",
    sources=["https://github.com/pytorch/torchtitan/pull/2107", "https://github.com/pytorch/torchtitan/pull/2207"],
    change="moe_dispatch_overlap",
    system="moe",
)
def tokens_cross_nodes(run: Analysis) -> Match | None:
    """Expert parallelism beyond a node, with exposed all-to-all."""
    needs_devices(run)
    exposed = _all_to_all(run)
    ranks, inside = moe_of(run).expert_parallel_size or 1, devices_per_node(run)
    if not OUTSIDE_NODE.is_crossed(ranks / inside) or not ALL_TO_ALL.is_crossed(exposed):
        return None
    return Match(
        evidence=[OUTSIDE_NODE.saw(ranks / inside), ALL_TO_ALL.saw(exposed)],
        gain=gain_from_removed_share(exposed, (0.3, 0.5, 0.75)),
        knobs={
            "megatron": f"--moe-token-dispatcher-type flex  # or --expert-model-parallel-size {inside}",
            "torchtitan": f"parallelism.expert_parallel_degree = {inside}",
        },
    )


@rule(
    "moe-imbalance",
    area="moe",
    title="one rank's experts get more tokens than the others'",
    symptom="every micro-batch waits for the rank with the busiest experts",
    thresholds=[SPEED_BOUND],
    lever="balance the router over the global batch: a bias per expert, or an auxiliary loss",
    frameworks={
        "megatron": "--moe-router-load-balancing-type global_aux_loss, or --moe-router-enable-expert-bias",
        "huggingface": "config.output_router_logits = True, config.router_aux_loss_coef = 0.001",
    },
    gain_basis="bound: the experts' products and exposed all-to-all, 1 − 1 / skew of it. Routers even out slowly and "
    "never fully: 30 to 80 %",
    risk="too strong a balancing loss costs quality; the bias does not",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2501.11873", "https://arxiv.org/abs/2408.15664"],
    system="moe",
)
def ranks_wait_for_busy_experts(run: Analysis) -> Match | None:
    """Experts that are known to lie on several ranks, unevenly loaded per micro-batch."""
    found = moe_of(run)
    if found.expert_parallel_size == 1:
        raise NotApplicable  # every device computes all experts: skew costs no time
    if found.expert_parallel_size is None:
        raise Missing("how many ranks share the experts", "a device mesh with a dimension `expert_parallel`")
    if found.speed_bound is None or not SPEED_BOUND.is_crossed(found.speed_bound):
        return None
    if any(layer.speed_bound_basis != "expert_parallel_rank" for layer in found.layers):
        raise Missing("which experts share a rank", "experts that divide evenly among ranks")
    experts = kernel_share(run, "grouped_gemm") + communication_share(run, "all_to_all")
    waiting = experts * (1 - 1 / found.speed_bound)
    return Match(
        evidence=[
            SPEED_BOUND.saw(found.speed_bound),
            Evidence(metric="kernel_account: grouped_gemm and all_to_all", value=experts, unit="share of window"),
        ],
        gain=gain_from_removed_share(waiting, (0.3, 0.55, 0.8)),
        knobs={
            "megatron": "--moe-router-load-balancing-type global_aux_loss --moe-aux-loss-coeff 1e-3\n"
            "# without a loss: --moe-router-enable-expert-bias --moe-router-score-function sigmoid",
            "huggingface": "config.output_router_logits = True; config.router_aux_loss_coef = 0.001",
        },
    )


@rule(
    "moe-router-collapse",
    area="moe",
    title="the router sends most tokens to few experts",
    symptom="over whole global batches one expert has a multiple of the mean load: a question of quality, not of speed",
    thresholds=[QUALITY],
    lever="balance the router: a bias per expert, or an auxiliary loss over the global batch",
    frameworks={
        "huggingface": "config.output_router_logits = True, config.router_aux_loss_coef = 0.001",
        "megatron": "--moe-router-load-balancing-type global_aux_loss",
    },
    gain_basis="no throughput: experts without tokens are parameters that learn nothing",
    risk="too strong a balancing loss costs quality too",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2501.11873"],
    system="moe",
)
def router_collapses(run: Analysis) -> Match | None:
    """Load over the global batch above the threshold and above what chance gives."""
    found = moe_of(run)
    worst = max(found.layers, key=lambda layer: layer.global_batch_imbalance or 0.0, default=None)
    if worst is None or worst.global_batch_imbalance is None:
        raise Missing("tokens per expert", WATCH_ROUTERS)
    experts = len(worst.tokens_per_expert)
    tokens = sum(worst.tokens_per_expert) / experts / max(1, found.samples)
    if not QUALITY.is_crossed(worst.global_batch_imbalance) or worst.global_batch_imbalance <= _chance(experts, tokens):
        return None
    return Match(
        evidence=[QUALITY.saw(worst.global_batch_imbalance)],
        gain=no_gain(),
        knobs={
            "huggingface": f"config.output_router_logits = True; config.router_aux_loss_coef = 0.001  # {worst.name}",
            "megatron": "--moe-router-load-balancing-type global_aux_loss --moe-aux-loss-coeff 1e-3",
        },
    )


def _chance(experts: int, tokens: float) -> float:
    """Busiest ÷ mean of a fair router: about 1 + √(2 ln E / n) with n tokens per expert, one more deviation on top."""
    return 1 + (sqrt(2 * log(max(experts, 2))) + 1) / sqrt(max(tokens, 1e-9))


@rule(
    "moe-dropped-tokens",
    area="moe",
    title="experts drop tokens that exceed their capacity",
    symptom="dropped tokens pass the layer by: a question of quality",
    thresholds=[DROPPED],
    lever="a larger capacity factor, or no capacity at all",
    frameworks={"megatron": "--moe-expert-capacity-factor 1.5, or leave it out for dropless experts"},
    gain_basis="no throughput: a larger capacity computes more",
    risk="a larger capacity factor costs memory and padding",
    risk_level="low",
    sources=["https://arxiv.org/abs/2211.15841"],
    system="moe",
)
def tokens_are_dropped(run: Analysis) -> Match | None:
    """Drops of the layer that drops most."""
    shares = [layer.dropped_share for layer in moe_of(run).layers if layer.dropped_share is not None]
    if not shares:
        raise NotApplicable  # the routers show no capacity
    if not DROPPED.is_crossed(max(shares)):
        return None
    return Match(
        evidence=[DROPPED.saw(max(shares))],
        gain=no_gain(),
        knobs={"megatron": "--moe-expert-capacity-factor 1.5  # without it no token is dropped"},
    )
