"""Rules on pipeline parallelism: the bubble of Narayanan et al. (arXiv 2104.04473) and the balance of stages.

With P stages and M micro-batches a 1F1B schedule idles for (P − 1) / (M + P − 1) of a step. How much of what the closed
form promises comes true was taken from table 4 of Qi et al. (arXiv 2401.10241), whose 28 pairs are in
`published_changes.csv`.
"""

from __future__ import annotations

from effprof.advise.facts import config, kernels, micro_batches_per_step, needs_ranks, parallel_size
from effprof.advise.gains import clip_gain, gain_from_removed_share
from effprof.advise.rule import Match, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence, Gain

QI = "https://arxiv.org/abs/2401.10241"
NARAYANAN = "https://arxiv.org/abs/2104.04473"

BUBBLE = Threshold(
    "account.step.pipeline_bubble ÷ step time, or (P − 1) / (M + P − 1)",
    0.10,
    "share of the step",
    "four micro-batches a stage leave 20 %, nine leave 10 %: beyond that the published gains fall under 5 %",
)
ZERO_BUBBLE = Threshold(
    "account.step.pipeline_bubble ÷ step time, or (P − 1) / (M + P − 1)",
    0.05,
    "share of the step",
    "of what is left the memory-neutral schedule removes 45 %: below 5 % that is 2 % of the step",
)
CHUNKS = Threshold(
    "layers ÷ stages", 2, "layers per stage", "an interleaved stage holds at least two chunks", relation=">="
)
STAGE_SKEW = Threshold(
    "kernel_account.compute_s: slowest stage ÷ mean",
    1.10,
    "ratio",
    "embedding and head cost up to a layer; a stage of ten layers cannot be balanced better than 10 %",
)
# Obtained ÷ promised in the published pairs, low to high:
MORE_MICRO_BATCHES = (0.85, 0.94, 1.0)  # 4 of 4
INTERLEAVED = (0.25, 0.5, 0.72)  # 7 of 8 pairs lie inside
ZERO_BUBBLE_1P = (0.31, 0.45, 0.76)  # 8 of 8


def closed_form_bubble(stages: int, micro_batches: int) -> float:
    """Share of a 1F1B step in which a stage idles: (P − 1) / (M + P − 1)."""
    return (stages - 1) / (micro_batches + stages - 1)


def gain_of_more_micro_batches(bubble: float, before: int, after: int) -> Gain:
    """Gain per token where M grows: the bubble keeps its length and is spread over more micro-batches."""
    removed = 1 - before / after
    promised = gain_from_removed_share(bubble * removed, (1.0, 1.0, 1.0)).likely
    low, likely, high = (promised * part for part in MORE_MICRO_BATCHES)
    return clip_gain(low, likely, high, gain_from_removed_share(bubble, (1.0, 1.0, 1.0)).bound)


def gain_of_interleaving(bubble: float, chunks: int) -> Gain:
    """Gain of V chunks a stage: the bubble shrinks to 1 / V of its length."""
    promised = gain_from_removed_share(bubble * (1 - 1 / chunks), (1.0, 1.0, 1.0)).likely
    low, likely, high = (promised * part for part in INTERLEAVED)
    return clip_gain(low, likely, high, gain_from_removed_share(bubble, (1.0, 1.0, 1.0)).bound)


def gain_of_zero_bubble(bubble: float) -> Gain:
    """Gain of the zero-bubble schedule that needs no more memory (ZB-1p)."""
    bound = gain_from_removed_share(bubble, (1.0, 1.0, 1.0)).bound
    low, likely, high = (bound * part for part in ZERO_BUBBLE_1P)
    return clip_gain(low, likely, high, bound)


def _stages(run: Analysis) -> int:
    needs_ranks(run)
    stages = parallel_size(run, "pipeline")
    if stages < 2:
        raise NotApplicable
    return stages


def _bubble(run: Analysis, stages: int) -> float:
    """The bubble's share of the step: as recorded, else the closed form."""
    seconds = sum(value for name, value in run.account.lines.items() if name.startswith("step."))
    measured = run.account.lines.get("step.pipeline_bubble")
    if measured is not None and seconds > 0:
        return measured / seconds
    return closed_form_bubble(stages, micro_batches_per_step(run))


def _shape(stages: int, micro_batches: int) -> list[Evidence]:
    return [
        Evidence(metric="run.parallel.pipeline", value=stages, unit="stages"),
        Evidence(metric="run.config.accumulate", value=micro_batches, unit="micro-batches"),
    ]


@rule(
    "par-pp-micro-batches",
    area="parallelism",
    title="the pipeline has too few micro-batches to fill it",
    symptom="stages idle at the start and the end of every step",
    thresholds=[BUBBLE],
    lever="more micro-batches per step",
    frameworks={
        "pytorch": "Schedule1F1B(stage, n_microbatches=M)",
        "megatron": "--global-batch-size B (M = B ÷ micro-batch ÷ data-parallel size)",
        "torchtitan": "training.local_batch_size with parallelism.pipeline_parallel_microbatch_size",
    },
    gain_basis="bound: the bubble. More micro-batches M' remove (1 − M / M') of it; the published pairs obtained 85 to "
    "100 % of that",
    risk="the global batch grows with M, or the micro-batch shrinks and its products become less efficient",
    risk_level="medium",
    sources=[NARAYANAN, QI],
    change="pp_microbatches",
    system="baige",
)
def too_few_micro_batches(run: Analysis) -> Match | None:
    """A bubble above the threshold that the closed form says more micro-batches shrink."""
    stages = _stages(run)
    bubble, before = _bubble(run, stages), micro_batches_per_step(run)
    if not BUBBLE.is_crossed(bubble):
        return None
    after = before
    while after < 4 * before and BUBBLE.is_crossed(closed_form_bubble(stages, after)):
        after *= 2
    if after == before:
        return None  # the schedule's length does not explain the waiting
    return Match(
        evidence=[BUBBLE.saw(bubble), *_shape(stages, before)],
        gain=gain_of_more_micro_batches(bubble, before, after),
        knobs={
            "pytorch": f"Schedule1F1B(stage, n_microbatches={after}, loss_fn=loss_fn)",
            "megatron": f"--global-batch-size B  # {after} micro-batches per data-parallel rank",
            "torchtitan": f"training.local_batch_size = {after} × parallelism.pipeline_parallel_microbatch_size",
        },
    )


@rule(
    "par-pp-interleave",
    area="parallelism",
    title="pipeline stages are one block of layers each",
    symptom="the bubble is as long as P − 1 whole stages",
    thresholds=[BUBBLE, CHUNKS],
    lever="interleaved schedule: several chunks of layers per stage",
    frameworks={
        "pytorch": "ScheduleInterleaved1F1B(stages, n_microbatches=M)",
        "megatron": "--num-layers-per-virtual-pipeline-stage N",
        "torchtitan": "parallelism.pipeline_parallel_schedule = Interleaved1F1B",
    },
    gain_basis="bound: the bubble. V chunks shrink it to 1 / V; the published pairs obtained 25 to 72 % of that, as "
    "V times the messages are sent",
    risk="more messages between stages; 20 to 35 % more activation memory in the published pairs",
    risk_level="medium",
    sources=[NARAYANAN, QI],
    change="pp_interleave",
    system="general",
)
def stages_are_not_interleaved(run: Analysis) -> Match | None:
    """A bubble, and stages of several layers that divide evenly."""
    stages = _stages(run)
    bubble, micro_batches = _bubble(run, stages), micro_batches_per_step(run)
    if not BUBBLE.is_crossed(bubble):
        return None
    layers = int(config(run, "layers"))
    each = layers // stages
    if layers % stages or not CHUNKS.is_crossed(each) or micro_batches % stages:
        return None  # the schedule asks for equal chunks and whole rounds of micro-batches
    chunks = 2 if each % 2 == 0 else each
    return Match(
        evidence=[BUBBLE.saw(bubble), CHUNKS.saw(each), *_shape(stages, micro_batches)],
        gain=gain_of_interleaving(bubble, chunks),
        knobs={
            "pytorch": f"ScheduleInterleaved1F1B(stages, n_microbatches={micro_batches})  # {chunks} stages per rank",
            "megatron": f"--num-layers-per-virtual-pipeline-stage {each // chunks}",
            "torchtitan": 'parallelism.pipeline_parallel_schedule = "Interleaved1F1B"\n'
            f"parallelism.pipeline_parallel_layers_per_stage = {each // chunks}",
        },
    )


@rule(
    "par-pp-zero-bubble",
    area="parallelism",
    title="the pipeline's bubble could be filled with weight gradients",
    symptom="stages idle although gradients of their weights could be computed then",
    thresholds=[ZERO_BUBBLE],
    lever="zero-bubble schedule: split the backward pass into input and weight gradients",
    frameworks={
        "pytorch": "ScheduleInterleavedZeroBubble or ScheduleZBVZeroBubble(stages, n_microbatches=M)",
        "torchtitan": "parallelism.pipeline_parallel_schedule = ZBVZeroBubble",
    },
    gain_basis="bound: the bubble. The schedule that needs no more memory removed 31 to 76 % of it in the published "
    "pairs; with twice the activations nearly all",
    risk="torch.compile and some fused backward passes cannot be split; the optimizer's global checks move",
    risk_level="medium",
    sources=[QI],
    change="pp_zero_bubble",
    system="moe",
)
def bubble_could_be_filled(run: Analysis) -> Match | None:
    """Any bubble above 5 %."""
    stages = _stages(run)
    bubble = _bubble(run, stages)
    if not ZERO_BUBBLE.is_crossed(bubble):
        return None
    micro_batches = micro_batches_per_step(run)
    return Match(
        evidence=[ZERO_BUBBLE.saw(bubble), *_shape(stages, micro_batches)],
        gain=gain_of_zero_bubble(bubble),
        knobs={
            "pytorch": f"ScheduleZBVZeroBubble(stages, n_microbatches={micro_batches})  # two stages per rank",
            "torchtitan": 'parallelism.pipeline_parallel_schedule = "ZBVZeroBubble"',
        },
    )


@rule(
    "par-pp-balance",
    area="parallelism",
    title="one pipeline stage computes longer than the others",
    symptom="the pipeline runs at the speed of its slowest stage",
    thresholds=[STAGE_SKEW],
    lever="move layers away from the slow stage, often the one with the embedding or the head",
    frameworks={
        "megatron": "--decoder-first-pipeline-num-layers N --decoder-last-pipeline-num-layers N",
        "torchtitan": "parallelism.pipeline_parallel_layers_per_stage, or module names per stage",
    },
    gain_basis="bound: the slowest stage's compute falls to the mean. Layers are whole: 40 to 85 % of it, published "
    "plans brought 8 and 10 %",
    risk="the checkpoint's layout changes",
    risk_level="low",
    sources=[
        "https://gitee.com/ascend/MindSpeed/tree/master/docs/zh/features/automated-pipeline.md",
        "https://gitee.com/ascend/MindSpeed/tree/master/docs/zh/features/noop-layers.md",
    ],
    change="pp",
    system="baige",
)
def stages_are_uneven(run: Analysis) -> Match | None:
    """Compute of the stages, each the mean over its ranks, stages laid out as blocks of ranks."""
    stages = _stages(run)
    kernels(run)
    each = max(1, run.run.world_size // stages)
    by_stage: dict[int, list[float]] = {}
    for rank, account in run.kernel_account.items():
        by_stage.setdefault(int(rank) // each, []).append(account.compute_s / account.window_s)
    if len(by_stage) < stages:
        return None  # not every stage was recorded
    compute = [sum(found) / len(found) for found in by_stage.values()]
    slowest, mean = max(compute), sum(compute) / len(compute)
    if mean <= 0 or not STAGE_SKEW.is_crossed(slowest / mean):
        return None
    where = max(by_stage, key=lambda stage: sum(by_stage[stage]) / len(by_stage[stage]))
    return Match(
        evidence=[STAGE_SKEW.saw(slowest / mean), Evidence(metric="slowest stage", value=where, unit="stage")],
        gain=gain_from_removed_share(slowest - mean, (0.4, 0.65, 0.85)),
        knobs={
            "megatron": "--decoder-first-pipeline-num-layers N --decoder-last-pipeline-num-layers N  "
            f"# fewer for stage {where}",
            "torchtitan": f"parallelism.module_fqns_per_model_part = [...]  # fewer layers in part {where}",
        },
    )
