"""Rules on how many samples a micro-batch holds, and how many of its positions are tokens."""

from __future__ import annotations

from effprof.advise.facts import (
    config,
    device_type,
    micro_batches_per_step,
    needs_accelerator,
    needs_ranks,
    peak_memory_share,
    step_seconds,
    step_share,
)
from effprof.advise.gains import clip_gain, gain_from_published, gain_from_removed_share
from effprof.advise.products import model_share, peak_share
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence

FREE = Threshold(
    "memory.peak ÷ device memory",
    0.45,
    "share",
    "twice the samples at most double the peak: below this they fit with a tenth to spare",
    "<",
)
FAR_FROM_PEAK = Threshold(
    "efficiency.hfu",
    0.45,
    "share of peak",
    "well-run dense training reaches 0.4 to 0.55 of the peak; above it larger products bring little",
    "<",
)
SMALL_PRODUCTS = Threshold(
    "positions ÷ micro-batches",
    2048,
    "positions",
    "products of fewer rows do not fill a device's tiles, and weights are read again for every micro-batch",
    "<",
)
PADDING = Threshold(
    "efficiency.padding_share",
    0.1,
    "share of positions",
    "below a tenth, grouping cannot bring more than the noise between runs and changes the order of the samples",
)
MUCH_PADDING = Threshold(
    "efficiency.padding_share",
    0.25,
    "share of positions",
    "packing needs a document mask and another loss weighting: worth it from a quarter of the positions on",
)
UNEVEN = Threshold(
    "efficiency.step_time_s: p95 ÷ median",
    1.25,
    "ratio",
    "steps of equal shapes vary by a few percent; a quarter comes from batches of different length",
)
EXPOSED = Threshold(
    "account.step.exposed_communication",
    0.1,
    "share of step time",
    "below a tenth the ranks hardly wait for one another",
)
SHAPES = Threshold(
    "run.config.input_shapes", 4, "shapes", "a last batch and a warm-up account for up to four shapes of equal batches"
)
SOURCE_SIZES = "https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html"
SIZE_KNOBS = {
    "lightning": "DataLoader(batch_size=N); Trainer(accumulate_grad_batches=M)",
    "pytorch": "DataLoader(batch_size=N)",
    "huggingface": "TrainingArguments(per_device_train_batch_size=N, gradient_accumulation_steps=M)",
    "megatron": "--micro-batch-size N",
}


@rule(
    "batch-micro-up",
    area="batch",
    title="the device has room for larger micro-batches",
    symptom="more than half of the device's memory is never used, and the products run far below the peak",
    thresholds=[FREE, FAR_FROM_PEAK],
    lever="double the micro-batch, and halve the accumulation so that the global batch stays",
    frameworks=SIZE_KNOBS,
    gain_basis="what lies between achieved FLOP/s and the peak is the bound; the prediction is the quartiles of "
    "published pairs in which only the micro-batch grew",
    risk="long samples may run out of memory; without accumulation to halve the global batch doubles",
    risk_level="medium",
    sources=[SOURCE_SIZES, "https://github.com/pytorch/torchtitan/pull/1690"],
    change="micro_batch",
    system="angel",
)
def memory_is_free(run: Analysis) -> Match | None:
    """Free memory beside an accelerator, with accumulation that can be halved."""
    needs_accelerator(run)
    filled, reached, accumulate = peak_memory_share(run), peak_share(run), micro_batches_per_step(run)
    if accumulate % 2 or not FREE.is_crossed(filled) or not FAR_FROM_PEAK.is_crossed(reached):
        return None
    evidence = [FREE.saw(filled), FAR_FROM_PEAK.saw(reached)]
    return _larger(run, 2, evidence, published=True)


@rule(
    "batch-tiny-micro",
    area="batch",
    title="the step is cut into micro-batches too small for the device",
    symptom="several small micro-batches are accumulated, each paying the launches and the reading of all weights",
    thresholds=[SMALL_PRODUCTS, FAR_FROM_PEAK],
    lever="fewer, larger micro-batches for the same global batch",
    frameworks=SIZE_KNOBS,
    gain_basis="model time above what the FLOPs need at the peak is the bound. On a CPU the kernel window tells what "
    "is paid per operator however few tokens (operators.fixed_share): k-fold micro-batches save 1 − 1/k of it, 85 to "
    "110 % of that; without it 15 to 30 % of the bound's time is taken to be paid per micro-batch",
    risk="activations grow with the micro-batch; padding may grow with it",
    risk_level="low",
    sources=[SOURCE_SIZES, "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html"],
    change="micro_batch",
    system="angel",
)
def tiny_micro_batches(run: Analysis) -> Match | None:
    """Accumulation of micro-batches with few positions, as far as memory is known to allow more."""
    accumulate = micro_batches_per_step(run)
    if accumulate < 2:
        return None
    positions, reached = _positions(run), peak_share(run)
    if not SMALL_PRODUCTS.is_crossed(positions) or not FAR_FROM_PEAK.is_crossed(reached):
        return None
    room = 0.9 / peak_memory_share(run) if device_type(run) != "cpu" else float(accumulate)
    wanted = min(room, 2 * SMALL_PRODUCTS.value / positions)
    factor = max((k for k in range(1, accumulate + 1) if accumulate % k == 0 and k <= wanted), default=1)
    if factor == 1:
        return None
    return _larger(run, factor, [SMALL_PRODUCTS.saw(positions), FAR_FROM_PEAK.saw(reached)], published=False)


def _positions(run: Analysis) -> float:
    """Positions of one rank's micro-batch."""
    tokens, padding = run.efficiency.tokens_per_step, run.efficiency.padding_share
    if not tokens:
        raise Missing("tokens per step", "EfficiencyCallback counts them where batches hold token ids")
    ranks = int(run.run.parallel.get("data_parallel_size") or run.run.world_size or 1)
    return tokens / (1 - min(padding or 0.0, 0.99)) / micro_batches_per_step(run) / ranks


def _larger(run: Analysis, factor: int, evidence: list[Evidence], published: bool) -> Match:
    size, accumulate = int(config(run, "micro_batch")) * factor, micro_batches_per_step(run) // factor
    gaps = run.account.lines.get("step.host_gap", 0.0) / step_seconds(run)
    excess = min(0.95, max(0.0, model_share(run) + gaps - peak_share(run)))
    saved = 1 - 1 / factor
    gain = gain_from_removed_share(excess * saved, (0.15, 0.22, 0.3))
    if run.operators is not None:
        fixed = run.operators.fixed_share
        low, likely, high = (gain_from_removed_share(part * fixed * saved, (1, 1, 1)).high for part in (0.85, 1.0, 1.1))
        gain = clip_gain(low, likely, high, gain.bound)
    return Match(
        evidence=[*evidence, Evidence(metric="run.config.micro_batch", value=size // factor, unit="samples")],
        gain=gain_from_published("micro_batch", gain.bound) if published else gain,
        knobs={
            "lightning": f"DataLoader(batch_size={size}); Trainer(accumulate_grad_batches={accumulate})",
            "pytorch": f"DataLoader(batch_size={size})",
            "huggingface": f"TrainingArguments(per_device_train_batch_size={size}, "
            f"gradient_accumulation_steps={accumulate})",
            "megatron": f"--micro-batch-size {size}",
        },
        changes={"micro_batch": size, "accumulate": accumulate},
    )


@rule(
    "batch-length-group",
    area="batch",
    title="positions are padding",
    symptom="samples of different length share a batch, and the model computes the padding",
    thresholds=[PADDING],
    lever="batches of samples of similar length, shuffled in windows, cut to their longest sample",
    frameworks={
        "lightning": "DataLoader(batch_sampler=BUCKETS), Trainer(use_distributed_sampler=False)",
        "pytorch": "DataLoader(batch_sampler=BUCKETS)",
        "huggingface": "TrainingArguments(train_sampling_strategy='group_by_length')",
    },
    gain_basis="padding_share of the model's time is the bound, p / (1 − p) where the model is the whole step; windows "
    "of many batches leave 5 to 20 % of the padding, and smaller products lose some of their rate: 70 to 92 % goes",
    risk="the order of the samples is less random",
    risk_level="low",
    sources=["https://arxiv.org/abs/2107.02027", "https://github.com/allenai/OLMo-core/pull/48"],
    system="baige",
)
def padding(run: Analysis) -> Match | None:
    """Padding above a tenth of the positions."""
    share = _padding(run)
    if not PADDING.is_crossed(share):
        return None
    gain = gain_from_removed_share(share * model_share(run), (0.7, 0.82, 0.92))
    sampler = "DataLoader(batch_sampler=batch_sampler)  # samples sorted by length within windows of 50 batches"
    return Match(
        evidence=[PADDING.saw(share)],
        gain=gain,
        knobs={"lightning": sampler, "pytorch": sampler},
        changes={"length_grouping": True, "trim_padding": True},
    )


@rule(
    "batch-pack",
    area="batch",
    title="a large part of the positions is padding that packing removes",
    symptom="a quarter or more of the positions hold no token",
    thresholds=[MUCH_PADDING],
    lever="pack several samples into one row, with attention kept inside each sample",
    frameworks={
        "lightning": "a collate function that packs, position ids that restart, a block mask",
        "pytorch": "torch.nn.attention.flex_attention.create_block_mask",
        "huggingface": "transformers.DataCollatorWithFlattening()",
    },
    gain_basis="padding_share of the model's time is the bound, p / (1 − p) where the model is the whole step; packing "
    "leaves 2 to 8 % of rows unfilled, and attention over documents is slower: 80 to 95 % goes",
    risk="attention across samples if the mask is wrong; the loss weights samples by their length",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2107.02027", "https://github.com/pytorch/torchtune/blob/main/README.md"],
    change="packing",
    system="baige",
)
def much_padding(run: Analysis) -> Match | None:
    """Padding above a quarter of the positions."""
    share = _padding(run)
    if not MUCH_PADDING.is_crossed(share):
        return None
    collate = "DataLoader(collate_fn=DataCollatorWithFlattening())  # with a flash or flex attention"
    return Match(
        evidence=[MUCH_PADDING.saw(share)],
        gain=gain_from_removed_share(share * model_share(run), (0.8, 0.9, 0.95)),
        knobs={"lightning": collate, "pytorch": collate},
    )


def _padding(run: Analysis) -> float:
    if run.efficiency.padding_share is None:
        raise Missing("the share of padding", "EfficiencyCallback counts it where batches hold an attention mask")
    return run.efficiency.padding_share


@rule(
    "batch-length-balance",
    area="batch",
    title="ranks wait for the one with the longest samples",
    symptom="shapes change from batch to batch, some steps take far longer, and ranks wait in collectives",
    thresholds=[SHAPES, UNEVEN, EXPOSED],
    lever="give every rank the same number of tokens: length-sorted windows dealt out over ranks",
    frameworks={"lightning": "DataLoader(batch_sampler=BUDGET), Trainer(use_distributed_sampler=False)"},
    gain_basis="the exposed communication's share is the bound; 20 to 60 % of it is taken for waiting, "
    "as the host's account does not tell waiting from transfer",
    risk="the order of the samples is less random",
    risk_level="medium",
    sources=["https://www.usenix.org/conference/osdi25/presentation/lin-jinkun"],
    system="baige",
)
def uneven_lengths(run: Analysis) -> Match | None:
    """Many shapes, uneven steps and exposed communication together."""
    needs_ranks(run)
    times = run.efficiency.step_time_s
    if not times.median or times.p95 is None:
        raise NotApplicable
    shapes, uneven = int(config(run, "input_shapes")), times.p95 / times.median
    if not SHAPES.is_crossed(shapes) or not UNEVEN.is_crossed(uneven):
        return None
    exposed = step_share(run, "step.exposed_communication")
    if not EXPOSED.is_crossed(exposed):
        return None
    gain = gain_from_removed_share(exposed, (0.2, 0.4, 0.6))
    return Match(
        evidence=[SHAPES.saw(shapes), UNEVEN.saw(uneven), EXPOSED.saw(exposed)],
        gain=clip_gain(gain.low, gain.likely, gain.high, gain.bound),
        knobs={
            "lightning": "DataLoader(batch_sampler=batch_sampler); Trainer(use_distributed_sampler=False)",
        },
    )
