"""Rules on activations: kept, recomputed or moved to the host."""

from __future__ import annotations

from effprof.advise.facts import config, memory_bytes, memory_part, needs_accelerator, peak_memory_share, step_share
from effprof.advise.gains import clip_gain, gain_from_removed_share, no_gain
from effprof.advise.rule import Match, Missing, Threshold, rule
from effprof.analysis.model import Analysis, Gain

ROOM = Threshold(
    "memory.peak ÷ device memory",
    0.6,
    "share",
    "published pairs without recompute need 1.5 to 1.7 times the memory: from 0.6 on that no longer fits",
    "<",
)
SOME_ROOM = Threshold(
    "memory.peak ÷ device memory",
    0.85,
    "share",
    "keeping the attention's and some products' results adds a tenth or more to the peak",
    "<",
)
TIGHT = Threshold(
    "memory.peak ÷ device memory", 0.9, "share", "below it the memory limits nothing: freeing some has no use"
)
RECOMPUTE = Threshold(
    "run.flops.recompute_share",
    0.05,
    "of model FLOPs",
    "selective recompute of attention or norms stays below a twentieth; a whole forward pass again is a third",
)
ACTIVATIONS = Threshold(
    "memory.activations_bytes ÷ peak_allocated_bytes",
    0.5,
    "share of the peak",
    "only activations shrink by recompute or offload: below half of the peak the states are the lever",
)
CHECKPOINT = "https://docs.pytorch.org/docs/stable/checkpoint.html"
KORTHIKANTI = "https://arxiv.org/abs/2205.05198"
RECOMPUTE_KNOBS = {
    "lightning": "FSDPStrategy(activation_checkpointing_policy={Block})",
    "huggingface": "TrainingArguments(gradient_checkpointing=True)",
    "megatron": "--recompute-granularity selective",
}


def _recompute_gain(run: Analysis, fractions: tuple[float, float, float]) -> tuple[float, Gain]:
    """Recomputed FLOPs per model FLOP, and what fractions of their time bring.

    By FLOPs, r per model FLOP take r / (1 + r) of forward and backward. By time they take more, as what is recomputed
    holds the many small operators and what is not the large product with the vocabulary; but never more than one
    forward pass.
    """
    recompute = run.run.flops.get("recompute_share")
    if recompute is None:
        raise Missing("the recomputed FLOPs", "EfficiencyCallback counts the operations of one micro-batch")
    forward, backward = step_share(run, "step.forward"), step_share(run, "step.backward")
    by_flops = (forward + backward) * recompute / (1 + recompute)
    at_most = max(forward, by_flops)
    low, likely, high = fractions
    shares = (low * by_flops, likely * (by_flops + at_most) / 2, high * at_most)
    gains = [gain_from_removed_share(share, (1, 1, 1)).high for share in shares]
    return recompute, clip_gain(gains[0], gains[1], gains[2], gain_from_removed_share(at_most, (1, 1, 1)).bound)


@rule(
    "mem-recompute-off",
    area="memory",
    title="activations are recomputed although memory is free",
    symptom="recompute takes FLOPs while two fifths of the memory are never used",
    thresholds=[ROOM, RECOMPUTE],
    lever="keep the activations",
    frameworks={"huggingface": "TrainingArguments(gradient_checkpointing=False)", "lightning": "FSDPStrategy()"},
    gain_basis="one forward pass is the bound. The low end is nine tenths of r / (1 + r) of forward and backward, with "
    "r the recomputed FLOPs per model FLOP; elementwise operators take more time than FLOPs, so the likely value lies "
    "half way to the bound",
    risk="runs out of memory on longer samples",
    risk_level="medium",
    sources=[KORTHIKANTI, CHECKPOINT],
    change="activation_ckpt_off",
    system="baige",
)
def needless_recompute(run: Analysis) -> Match | None:
    """Recompute with room for what it saves."""
    if not config(run, "gradient_checkpointing"):
        return None
    recompute, gain = _recompute_gain(run, (0.9, 1.0, 1.0))
    if not RECOMPUTE.is_crossed(recompute):
        return None
    evidence = [RECOMPUTE.saw(recompute)]
    filled = _filled(run)
    if not ROOM.is_crossed(filled):
        return None
    return Match(
        evidence=[ROOM.saw(filled), *evidence],
        gain=gain,
        knobs={
            "lightning": "model.gradient_checkpointing_disable()",
            "huggingface": "TrainingArguments(gradient_checkpointing=False)",
        },
        changes={"gradient_checkpointing": False},
    )


def _filled(run: Analysis) -> float:
    """Peak ÷ memory: the allocator's, or the process's on a CPU."""
    if run.hardware.devices and run.hardware.devices[0].type == "cpu":
        resident = run.memory.process_peak_rss_bytes or run.memory.process_rss_bytes
        if resident is None:
            raise Missing("the process's memory", "train with EfficiencyCallback of this version")
        return resident / memory_bytes(run)
    return peak_memory_share(run)


@rule(
    "mem-recompute-selective",
    area="memory",
    title="whole layers are recomputed where a part would do",
    symptom="full recompute with some memory left, too little to switch it off",
    thresholds=[SOME_ROOM, ROOM, RECOMPUTE],
    lever="recompute only what is cheap for its size",
    frameworks={
        "pytorch": "torch.utils.checkpoint.checkpoint(fn, context_fn=CONTEXT, use_reentrant=False)",
        "megatron": "--recompute-granularity selective",
    },
    gain_basis="one forward pass is the bound; a policy that keeps products' results saves 30 to 70 % of what the "
    "recompute takes, in line with published pairs of 2 to 13 %",
    risk="a tenth to a half more activations",
    risk_level="medium",
    sources=[KORTHIKANTI, "https://github.com/pytorch/torchtitan/pull/165"],
    change="activation_ckpt_selective",
    system="baige",
)
def full_recompute(run: Analysis) -> Match | None:
    """Full recompute between the two limits of memory."""
    needs_accelerator(run)
    if not config(run, "gradient_checkpointing") or config(run, "gradient_checkpointing_policy") != "full":
        return None
    filled = peak_memory_share(run)
    recompute, gain = _recompute_gain(run, (0.3, 0.5, 0.7))
    if ROOM.is_crossed(filled) or not SOME_ROOM.is_crossed(filled) or not RECOMPUTE.is_crossed(recompute):
        return None
    return Match(
        evidence=[SOME_ROOM.saw(filled), RECOMPUTE.saw(recompute)],
        gain=gain,
        knobs={
            "pytorch": "torch.utils.checkpoint.checkpoint(layer, hidden, use_reentrant=False, context_fn=context_fn)",
            "megatron": "--recompute-granularity selective",
        },
        changes={"gradient_checkpointing": "selective"},
    )


def _activations_fill(run: Analysis) -> tuple[float, float] | None:
    """Peak ÷ memory and activations ÷ peak, where both are above their limits."""
    needs_accelerator(run)
    filled, activations = peak_memory_share(run), memory_part(run, "activations_bytes")
    return (filled, activations) if TIGHT.is_crossed(filled) and ACTIVATIONS.is_crossed(activations) else None


@rule(
    "mem-recompute-on",
    area="memory",
    title="activations fill the memory and nothing is recomputed",
    symptom="the peak is within a tenth of the device's memory, and more than half of it activations",
    thresholds=[TIGHT, ACTIVATIONS],
    lever="recompute part of the activations, then raise the micro-batch",
    frameworks=RECOMPUTE_KNOBS,
    gain_basis="no throughput by itself: published pairs lose 10 to 23 %; it pays only with what the room is used for",
    risk="about one more forward pass per step",
    risk_level="medium",
    sources=[CHECKPOINT, KORTHIKANTI],
    change="activation_ckpt_on",
    system="baige",
)
def activations_fill(run: Analysis) -> Match | None:
    """Activations fill the memory without recompute."""
    seen = _activations_fill(run)
    if seen is None or config(run, "gradient_checkpointing"):
        return None
    return Match(
        evidence=[TIGHT.saw(seen[0]), ACTIVATIONS.saw(seen[1])],
        gain=no_gain(),
        knobs={
            "huggingface": "TrainingArguments(gradient_checkpointing=True)",
            "megatron": "--recompute-granularity selective",
        },
        changes={"gradient_checkpointing": "selective"},
    )


@rule(
    "mem-activation-offload",
    area="memory",
    title="recomputed activations still fill the memory",
    symptom="with recompute on, activations are more than half of a full memory",
    thresholds=[TIGHT, ACTIVATIONS],
    lever="keep the layers' inputs in host memory, copied beside the computation",
    frameworks={"pytorch": "torch.autograd.graph.save_on_cpu(pin_memory=True)"},
    gain_basis="no throughput by itself (one published pair: −0.1 %); room for a larger micro-batch or less recompute",
    risk="without overlap the copies wait for the link",
    risk_level="medium",
    sources=["https://github.com/pytorch/torchtune/blob/main/README.md", "https://arxiv.org/abs/2303.02868"],
    change="offload_activation",
    system="angel",
)
def inputs_fill(run: Analysis) -> Match | None:
    """Activations fill the memory in spite of recompute."""
    seen = _activations_fill(run)
    if seen is None or not config(run, "gradient_checkpointing"):
        return None
    return Match(
        evidence=[TIGHT.saw(seen[0]), ACTIVATIONS.saw(seen[1])],
        gain=no_gain(),
        knobs={"pytorch": "torch.autograd.graph.save_on_cpu(pin_memory=True)"},
    )
