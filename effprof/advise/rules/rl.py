"""Rules on reinforcement learning and fine-tuning."""

from __future__ import annotations

from effprof.advise.facts import config, step_share
from effprof.advise.gains import gain_from_faster_part, gain_from_removed_share
from effprof.advise.rule import Match, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis

GENERATION = Threshold(
    "account.step.generation",
    0.5,
    "share of step time",
    "above half of the step a faster generator brings more than anything in the training part could",
)
FROZEN = Threshold(
    "run.config.frozen_share",
    0.5,
    "share of parameters",
    "with most parameters frozen most of the forward pass computes the same features in every epoch",
)
FORWARD = Threshold(
    "account.step.forward",
    0.3,
    "share of step time",
    "a whole training spends about a third in forward: with less the frozen part is not what takes the time",
)


@rule(
    "rl-generation",
    area="rl",
    title="the step waits for generation",
    symptom="sampling takes more than half of the step",
    thresholds=[GENERATION],
    lever="generate with an inference engine, batched continuously, and train on the last samples meanwhile",
    frameworks={
        "pytorch": "vllm.LLM(model=..., enable_prefix_caching=True).generate(prompts, SamplingParams(n=N))",
        "huggingface": 'trl.GRPOConfig(use_vllm=True, vllm_mode="colocate")',
        "megatron": "--rl-use-sequence-packing",
    },
    gain_basis="generation's share of the step is the bound; engines with paged attention generate 1.5 to 4 times as "
    "fast as a training framework's own loop",
    risk="samples of older weights; weights must be copied to the engine",
    risk_level="high",
    sources=["https://arxiv.org/abs/2405.11143", "https://arxiv.org/abs/2309.06180"],
    system="angel",
)
def generation_bound(run: Analysis) -> Match | None:
    """Generation above half of the step."""
    if "step.generation" not in run.account.lines or run.account.lines["step.generation"] == 0:
        raise NotApplicable
    share = step_share(run, "step.generation")
    if not GENERATION.is_crossed(share):
        return None
    return Match(
        evidence=[GENERATION.saw(share)],
        gain=gain_from_faster_part(share, (1.5, 2.0, 4.0)),
        knobs={
            "pytorch": "vllm.LLM(model=path).generate(prompts, vllm.SamplingParams(n=8))",
            "huggingface": 'trl.GRPOConfig(use_vllm=True, vllm_mode="colocate")',
            "megatron": "--rl-use-sequence-packing",
        },
    )


@rule(
    "rl-frozen-features",
    area="rl",
    title="a frozen part is computed anew in every epoch",
    symptom="most parameters are frozen, no adapter lies between them, and forward takes much of the step",
    thresholds=[FROZEN, FORWARD],
    lever="compute the frozen part's output once and train on the stored features",
    frameworks={
        "lightning": "features in LightningDataModule.prepare_data",
        "pytorch": "with torch.inference_mode(): features = backbone(batch)",
    },
    gain_basis="forward's share times the frozen share of the parameters is the bound; reading features takes time: "
    "60 to 95 % goes",
    risk="only where the frozen part comes first and the input is not augmented; the features need storage",
    risk_level="medium",
    sources=["https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html"],
    system="angel",
)
def frozen_part(run: Analysis) -> Match | None:
    """A frozen backbone over several epochs."""
    frozen = float(config(run, "frozen_share"))
    if "adapter" in run.run.config or not FROZEN.is_crossed(frozen):
        return None
    per_epoch = int(config(run, "train_batches")) // max(1, int(config(run, "accumulate")))
    if run.efficiency.steps.total <= per_epoch:
        return None
    forward = step_share(run, "step.forward")
    if not FORWARD.is_crossed(forward):
        return None
    knob = "with torch.inference_mode():\n    features = backbone(batch)  # once, then train the head on them"
    return Match(
        evidence=[FROZEN.saw(frozen), FORWARD.saw(forward)],
        gain=gain_from_removed_share(forward * frozen, (0.6, 0.8, 0.95)),
        knobs={"lightning": knob, "pytorch": knob},
    )
