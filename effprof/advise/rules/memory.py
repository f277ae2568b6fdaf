"""Rules on what fills the device's memory, and what is paid to keep it free."""

from __future__ import annotations

from effprof.advise.facts import config, memory_part, needs_accelerator, peak_memory_share, step_share
from effprof.advise.gains import clip_gain, gain_from_published, gain_from_removed_share, no_gain
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis

ROOM = Threshold(
    "memory.peak ÷ device memory",
    0.6,
    "share",
    "published pairs without recompute need 1.5 to 1.7 times the memory: from 0.6 on that no longer fits",
    "<",
)
TIGHT = Threshold(
    "memory.peak ÷ device memory", 0.9, "share", "below it the memory limits nothing: freeing some has no use"
)
OPTIMIZER = Threshold(
    "memory.optimizer_bytes ÷ peak_allocated_bytes",
    0.35,
    "share of the peak",
    "fp32 Adam states at 8 bits free three quarters of themselves: a quarter of the peak from 0.35 on",
)
STALL = Threshold(
    "account.step.optimizer",
    0.2,
    "share of step time",
    "an optimizer on the device takes 1 to 5 % of a step: a fifth is spent on the host or on the link",
)
FRAGMENTED = Threshold(
    "memory.fragmentation_bytes ÷ peak_reserved_bytes",
    0.15,
    "share of reserved memory",
    "rounding to blocks leaves up to a tenth; above that, blocks of unfit sizes lie between tensors",
)
RETRIES = Threshold(
    "memory.alloc_retries",
    0,
    "retries",
    "each one synchronises the device and frees the cache; a run with head-room has none",
)
LOGITS = Threshold(
    "logits of a micro-batch, fp32 and their gradient ÷ peak",
    0.25,
    "share of the peak",
    "a quarter of the peak that a chunked loss frees is worth a change of the loss's code",
)


@rule(
    "mem-8bit-optimizer",
    area="memory",
    title="optimizer state fills the memory",
    symptom="the device is nearly full, and a third or more of the peak is fp32 optimizer state",
    thresholds=[TIGHT, OPTIMIZER],
    lever="8-bit optimizer state",
    frameworks={"pytorch": "bitsandbytes.optim.AdamW8bit", "huggingface": "TrainingArguments(optim='adamw_bnb_8bit')"},
    gain_basis="no throughput by itself: published pairs lie between −5 and +16 %; the freed memory is what it brings",
    risk="compare the loss; checkpoints hold another dtype",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2110.02861", "https://arxiv.org/abs/2309.01507"],
    change="8bit_optimizer",
    system="general",
)
def optimizer_fills(run: Analysis) -> Match | None:
    """fp32 states above their limit in a full memory."""
    needs_accelerator(run)
    filled, states = peak_memory_share(run), memory_part(run, "optimizer_bytes")
    if not TIGHT.is_crossed(filled) or not OPTIMIZER.is_crossed(states) or int(config(run, "optimizer_bits")) < 32:
        return None
    return Match(
        evidence=[TIGHT.saw(filled), OPTIMIZER.saw(states)],
        gain=no_gain(),
        knobs={
            "pytorch": "bitsandbytes.optim.AdamW8bit(model.parameters())",
            "huggingface": "TrainingArguments(optim='adamw_bnb_8bit')",
        },
        memory_effect_bytes=-(run.memory.optimizer_bytes or 0) * 3 // 4,
    )


@rule(
    "mem-offload-stall",
    area="memory",
    title="the device waits for an optimizer on the host",
    symptom="states are offloaded and the optimizer takes a fifth of the step or more",
    thresholds=[STALL, ROOM],
    lever="keep the optimizer on the device, sharded if need be",
    frameworks={
        "lightning": "Trainer(strategy='deepspeed_stage_2')",
        "deepspeed": "zero_optimization.offload_optimizer",
    },
    gain_basis="the optimizer's share of the step is the bound; on the device it takes 5 to 25 % of that",
    risk="needs the memory that the offload saved",
    risk_level="medium",
    sources=["https://github.com/deepspeedai/DeepSpeed/blob/master/blogs/deepspeed-zenflow/README.md"],
    change="offload_optimizer",
    system="angel",
)
def host_optimizer(run: Analysis) -> Match | None:
    """A slow optimizer with states on the host and room on the device."""
    needs_accelerator(run)
    layout = run.run.parallel
    if not layout.get("cpu_offload") and layout.get("offload_optimizer", "none") in ("none", None):
        raise NotApplicable
    share, filled = step_share(run, "step.optimizer"), peak_memory_share(run)
    if not STALL.is_crossed(share) or not ROOM.is_crossed(filled):
        return None
    stage = layout.get("zero_stage")
    knob = f"Trainer(strategy='deepspeed_stage_{stage}')" if stage else "FSDPStrategy(cpu_offload=False)"
    return Match(
        evidence=[STALL.saw(share), ROOM.saw(filled)],
        gain=gain_from_removed_share(share, (0.75, 0.85, 0.95)),
        knobs={"lightning": knob},
    )


@rule(
    "mem-fragmentation",
    area="memory",
    title="reserved memory is lost between tensors",
    symptom="the memory is nearly full, and a seventh of what is reserved holds no tensor",
    thresholds=[TIGHT, FRAGMENTED],
    lever="segments of the allocator that can grow",
    frameworks={"environment": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"},
    gain_basis="no throughput by itself: the lost memory becomes usable, which prevents retries and failures",
    risk="memory that other processes map (CUDA IPC) cannot come from such segments in every version",
    risk_level="low",
    sources=[
        "https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf"
    ],
    system="angel",
)
def fragmentation(run: Analysis) -> Match | None:
    """Fragments above the limit in a full memory."""
    needs_accelerator(run)
    lost, reserved = run.memory.fragmentation_bytes, run.memory.peak_reserved_bytes
    if lost is None or not reserved:
        raise Missing("the allocator's fragmentation", "train on a device with a caching allocator")
    filled = peak_memory_share(run)
    if not TIGHT.is_crossed(filled) or not FRAGMENTED.is_crossed(lost / reserved) or _can_grow(run):
        return None
    return Match(
        evidence=[TIGHT.saw(filled), FRAGMENTED.saw(lost / reserved)],
        gain=no_gain(),
        knobs={"environment": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"},
        changes={"environment": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}},
        memory_effect_bytes=-lost,
    )


def _can_grow(run: Analysis) -> bool:
    return "expandable_segments:True" in str(run.run.software.get("environment") or {})


@rule(
    "mem-alloc-retries",
    area="memory",
    title="the allocator runs out of memory inside steps and starts over",
    symptom="the allocator had to free its cache and ask the driver again",
    thresholds=[RETRIES],
    lever="segments that can grow, or a smaller micro-batch",
    frameworks={"environment": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"},
    gain_basis="20 to 100 ms for each retry, spread over the steps, against their time; the bound is 0.5 s for each",
    risk="none on the numbers",
    risk_level="low",
    sources=["https://docs.pytorch.org/docs/stable/generated/torch.cuda.memory.memory_stats.html"],
    system="general",
)
def retries(run: Analysis) -> Match | None:
    """Retries of the allocator, as a share of the time in steps."""
    needs_accelerator(run)
    count = run.memory.alloc_retries
    if count is None:
        raise Missing("the allocator's retries", "train on a device with a caching allocator")
    if not RETRIES.is_crossed(count):
        return None
    seconds = sum(value for name, value in run.account.lines.items() if name.startswith("step.")) or 1.0
    per_second = count / seconds
    low, likely, high, bound = (
        gain_from_removed_share(min(1.0, pause * per_second), (1, 1, 1)).bound for pause in (0.02, 0.05, 0.1, 0.5)
    )
    gain = clip_gain(low, likely, high, bound)
    return Match(
        evidence=[RETRIES.saw(count)],
        gain=gain,
        knobs={"environment": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"},
        changes={"environment": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}},
    )


@rule(
    "mem-logits",
    area="memory",
    title="the logits fill the memory",
    symptom="fp32 logits and their gradient are a quarter of a nearly full memory",
    thresholds=[TIGHT, LOGITS],
    lever="a loss that computes logits in chunks, fused with the output layer",
    frameworks={"huggingface": "TrainingArguments(use_liger_kernel=True)"},
    gain_basis="the published pairs of a chunked loss, −0.1 to +2 %; the freed memory is what it brings",
    risk="the model returns no logits for metrics",
    risk_level="low",
    sources=["https://arxiv.org/abs/2410.10989", "https://github.com/pytorch/torchtune/blob/main/README.md"],
    change="chunked_ce",
    system="general",
)
def logits_fill(run: Analysis) -> Match | None:
    """Two fp32 matrices of micro-batch positions × vocabulary against the peak."""
    needs_accelerator(run)
    filled, peak, tokens = peak_memory_share(run), run.memory.peak_allocated_bytes, run.efficiency.tokens_per_step
    if not peak or not tokens:
        raise Missing("tokens per step and the allocator's peak", "train with EfficiencyCallback on batches of tokens")
    ranks = int(run.run.parallel.get("data_parallel_size") or run.run.world_size or 1)
    size = int(tokens / ranks / int(config(run, "accumulate")) * int(config(run, "vocab_size")) * 4 * 2)
    if not TIGHT.is_crossed(filled) or not LOGITS.is_crossed(size / peak):
        return None
    return Match(
        evidence=[TIGHT.saw(filled), LOGITS.saw(size / peak)],
        gain=gain_from_published("chunked_ce", 0.05),
        knobs={"huggingface": "TrainingArguments(use_liger_kernel=True)"},
        memory_effect_bytes=-size,
    )
