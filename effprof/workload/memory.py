"""Predicts the memory of a training in closed form, before it runs: states, activations and the peak, without torch.

States follow ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1): parameters, gradients and optimizer state,
each divided by the devices it is sharded over. Activations follow the method of Korthikanti et al. 2022
(arXiv:2205.05198, section 4.1: sum what every operation keeps for its gradient), but not its constants: those are of
Megatron's fused layers, here they are of the modules that transformers runs, for each precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from effprof.errors import EffprofError
from effprof.workload.architecture import from_hf_config
from effprof.workload.memory_shapes import ModelShapes, shapes_from_config

# Optimizer state per parameter: (values in the parameter's own size, bytes beside them).
OPTIMIZER_STATE = {
    "sgd": (0, 0),
    "momentum": (1, 0),
    "adagrad": (1, 0),
    "lion": (1, 0),
    "muon": (1, 0),
    "rmsprop": (1, 0),
    "adadelta": (2, 0),
    "adam": (2, 0),
    "adamw": (2, 0),
    "nadam": (2, 0),
    "radam": (2, 0),
    "adam8bit": (0, 2),  # two moments of one byte; Dettmers et al. 2022, arXiv:2110.02861
    "adamw8bit": (0, 2),
    "lion8bit": (0, 1),
}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
RECOMPUTE = ("none", "selective", "full")
ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class Plan:
    """How a model is trained, as far as its memory depends on it.

    Attributes:
        micro_batch: samples of one device's micro-batch.
        sequence: tokens per sample (vision models know their own).
        precision: one of PRECISIONS. Mixed keeps fp32 parameters and autocast's copies of the linear weights.
        optimizer: one of OPTIMIZER_STATE.
        shards: devices that states are sharded over; zero_stage says which: 0 none, 1 optimizer state, 2 gradients
            too, 3 parameters too (FSDP).
        recompute: "none", "selective" (attention scores only) or "full" (all but each layer's input).
        attention: "sdpa" (or any fused kernel) or "eager".
        accumulates: whether gradients of earlier micro-batches are there during forward and backward.
        clears_late: whether the last step's gradients are there until the forward pass is over, as in Lightning.
        has_gradient_buckets: whether DDP holds its own copy of the gradients (`gradient_as_bucket_view=False`).
        is_fused_optimizer: no temporaries in the optimizer step; else those of the foreach kernels.
        device_type: "cuda" or "cpu": they keep dropout masks in other sizes, and a CPU has no fused dropout attention.
    """

    micro_batch: int
    sequence: int = 1
    precision: str = "32-true"
    optimizer: str = "adamw"
    shards: int = 1
    zero_stage: int = 0
    recompute: str = "none"
    attention: str = "sdpa"
    accumulates: bool = False
    clears_late: bool = False
    has_gradient_buckets: bool = False
    is_fused_optimizer: bool = False
    device_type: str = "cuda"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("recompute", self.recompute, RECOMPUTE),
            ("attention", self.attention, ATTENTION),
            ("optimizer", self.optimizer, tuple(OPTIMIZER_STATE)),
        ):
            if value not in known:
                raise EffprofError(f"{name} {value!r} is not known", f"Known: {', '.join(known)}.")
        if min(self.micro_batch, self.sequence, self.shards) < 1 or self.zero_stage not in (0, 1, 2, 3):
            raise EffprofError("a plan needs micro_batch, sequence and shards of at least 1, and zero_stage 0 … 3")

    @property
    def is_mixed(self) -> bool:
        """Whether autocast runs on fp32 parameters."""
        return self.precision.endswith("mixed")

    @property
    def parameter_size(self) -> int:
        """Bytes of a parameter."""
        return 2 if self.precision in ("bf16-true", "16-true") else 4

    @property
    def compute_size(self) -> int:
        """Bytes of a value that a linear layer puts out."""
        return 4 if self.precision == "32-true" else 2


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of one device. What the family's closed form does not know is None, and `reason` says why.

    Attributes:
        parameters_bytes, gradients_bytes, optimizer_bytes: the states in full, as this device holds them.
        activations_bytes: kept by autograd when the backward pass begins, autocast's weight copies included.
        temporary_bytes: at the peak beside states and activations: logits, gradients on their way, buckets, ...
        peak_gradients_bytes, peak_activations_bytes: what of them is there at the peak.
        peak_bytes: most that tensors hold at once.
        peak_at: "forward" (its end), "backward" (its beginning), "accumulated" (its end, with all gradients) or
            "optimizer".
        parts: activations by part of the model.
    """

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int | None = None
    temporary_bytes: int | None = None
    peak_gradients_bytes: int | None = None
    peak_activations_bytes: int | None = None
    peak_bytes: int | None = None
    peak_at: str | None = None
    parts: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""


def predict_memory(config: Mapping[str, Any], plan: Plan) -> MemoryForecast:
    """Memory of training the model of a Hugging Face `config` after `plan`, all parameters trained.

    Raises:
        EffprofError: the config's family is not known at all, or a key is missing.
    """
    total = from_hf_config(config).parameters_total
    states = state_forecast(total, total, plan)
    try:
        shapes = shapes_from_config(config)
    except EffprofError as error:
        return replace(states, reason=error.message)
    return add_activations(states, shapes, plan)


def state_forecast(parameters: int, trained: int, plan: Plan) -> MemoryForecast:
    """The states alone: `parameters` values of which `trained` are trained."""
    per_value, beside = OPTIMIZER_STATE[plan.optimizer]
    size = plan.parameter_size

    def share(total: int, stage: int) -> int:
        return -(-total // plan.shards) if plan.zero_stage >= stage else total

    return MemoryForecast(
        parameters_bytes=share(parameters * size, 3),
        gradients_bytes=share(trained * size, 2),
        optimizer_bytes=share(trained * (per_value * size + beside), 1),
    )


def add_activations(states: MemoryForecast, shapes: ModelShapes, plan: Plan) -> MemoryForecast:
    """`states` with activations and peak: the largest of four moments of a step."""
    parts = activation_parts(shapes, plan)
    kept = sum(parts.values())
    tokens = plan.micro_batch * (shapes.positions or plan.sequence)
    before = states.gradients_bytes if plan.accumulates else 0
    buckets = states.gradients_bytes if plan.has_gradient_buckets else 0
    gathered = 2 * shapes.layer_parameters * plan.compute_size if plan.zero_stage == 3 and plan.shards > 1 else 0
    gradients = states.gradients_bytes
    largest = plan.parameter_size * shapes.hidden * max(shapes.vocabulary, shapes.inner)
    # moment: gradients, activations and temporaries that are there
    moments = {
        "forward": (gradients if plan.clears_late else before, kept, _forward_bytes(shapes, plan, tokens)),
        "backward": (before, kept, _backward_bytes(shapes, plan, tokens, parts)),
        # the embedding's gradient comes last, with the first layer's temporaries gone
        "accumulated": (gradients, parts["embedding"], 0),
        "optimizer": (gradients, 0, optimizer_temporaries(plan, gradients, largest)),
    }
    peak_at = max(moments, key=lambda name: sum(moments[name]))
    at_peak = moments[peak_at]
    return replace(
        states,
        activations_bytes=kept,
        temporary_bytes=at_peak[2] + buckets + gathered,
        peak_gradients_bytes=at_peak[0],
        peak_activations_bytes=at_peak[1],
        peak_bytes=states.parameters_bytes + states.optimizer_bytes + sum(at_peak) + buckets + gathered,
        peak_at=peak_at,
        parts=parts,
    )


def optimizer_temporaries(plan: Plan, gradients_bytes: int, largest_bytes: int) -> int:
    """What an optimizer step makes for itself: adaptive ones need denominators.

    torch's foreach kernels (its choice on a GPU) make them for all parameters at once, the loop that it chooses on a
    CPU makes two for one parameter at a time, fused kernels none.
    """
    if plan.is_fused_optimizer or OPTIMIZER_STATE[plan.optimizer][0] < 2:
        return 0
    return 2 * largest_bytes if plan.device_type == "cpu" else gradients_bytes


def _backward_bytes(shapes: ModelShapes, plan: Plan, tokens: int, parts: Mapping[str, int]) -> int:
    """Most that the first operations of the backward pass hold beside what was kept, gradients of weights included."""
    # the loss's backward holds its own gradient and the logits' beside what was kept, both in fp32
    at_loss = 0 if shapes.positions else 2 * 4 * shapes.vocabulary * tokens
    # then the last layer's: gradients of its feed-forward part; with recompute also what it has just made again
    inner = _inner(shapes)
    at_layer = tokens * plan.compute_size * (inner * (3 if shapes.is_gated else 1) + shapes.hidden)
    at_layer += plan.parameter_size * shapes.hidden * ((0 if shapes.positions else shapes.vocabulary) + inner)
    if plan.recompute == "full":
        at_layer += _layer_bytes(shapes, plan, tokens, is_sparse=shapes.sparse_layers > 0)
        at_layer += plan.compute_size * shapes.layer_parameters if plan.is_mixed else 0
    return max(at_loss, at_layer - parts["head"] - parts["final norm"])


def _forward_bytes(shapes: ModelShapes, plan: Plan, tokens: int) -> int:
    """Most that the end of the forward pass holds beside what is kept of it."""
    # the logits, and in half precision their copy in fp32, beside the softmax that is kept
    per_value = 4 if plan.compute_size == 4 else 4 + plan.compute_size
    logits = 0 if shapes.positions else tokens * shapes.vocabulary * per_value
    if plan.is_mixed and plan.recompute == "full":
        return logits + plan.compute_size * (shapes.linear_parameters - shapes.hidden * shapes.vocabulary)
    return logits


def activation_parts(shapes: ModelShapes, plan: Plan) -> dict[str, int]:
    """What autograd keeps of one micro-batch when the backward pass begins, by part of the model, in bytes."""
    positions = shapes.positions or plan.sequence
    tokens = plan.micro_batch * positions
    stream = plan.parameter_size  # the residual stream: autocast leaves it in the parameters' precision
    parts = {"layers": 0, "embedding": 0}
    if plan.recompute == "full":
        parts["layers"] = shapes.layers * tokens * shapes.hidden * stream
    else:
        for is_sparse, layers in ((False, shapes.layers - shapes.sparse_layers), (True, shapes.sparse_layers)):
            parts["layers"] += layers * _layer_bytes(shapes, plan, tokens, is_sparse) if layers else 0
    if shapes.has_rotary:
        parts["embedding"] = 2 * positions * shapes.head_size * plan.parameter_size
    if shapes.dropout:
        parts["embedding"] += tokens * shapes.hidden * _mask_size(plan, stream)
    if shapes.pixels and plan.is_mixed:
        parts["embedding"] += 2 * plan.micro_batch * shapes.pixels
    parts["final norm"] = tokens * _norm(shapes, plan, copies=0 if shapes.positions else 1)
    rows = plan.micro_batch if shapes.positions else tokens
    parts["head"] = rows * (4 * shapes.vocabulary + (0 if shapes.positions else 8))
    parts["autocast weights"] = _autocast_bytes(shapes, plan)
    window = shapes.window
    if window is not None and positions > window and plan.attention == "sdpa":
        parts["mask"] = plan.micro_batch * positions * positions
    return parts


def _layer_bytes(shapes: ModelShapes, plan: Plan, tokens: int, is_sparse: bool) -> int:
    size = plan.compute_size
    per_token = _norm(shapes, plan, copies=1 if shapes.is_fused else 3) + _attention(shapes, plan)
    if is_sparse:
        per_token += _norm(shapes, plan, copies=1) + _experts(shapes, plan)
    else:
        copies = 2 if shapes.is_gated and not shapes.is_fused else 1
        per_token += _norm(shapes, plan, copies=copies) + shapes.inner_kept * shapes.inner * size
    if shapes.dropout:
        per_token += 2 * shapes.hidden * _mask_size(plan, size)
    return tokens * per_token


def _norm(shapes: ModelShapes, plan: Plan, copies: int) -> int:
    """Bytes per token of a norm and of what the next linear layers keep as their input (`copies` under autocast)."""
    hidden, size = shapes.hidden, plan.parameter_size
    # RMSNorm written out keeps its input in fp32, the normalised values, and one statistic
    own = hidden * (4 + size) + 4 if shapes.is_rms else hidden * size + 8
    # each linear layer casts its input for itself, and the fp32 output of the norm itself is not kept then
    return own + hidden * (plan.compute_size * copies if plan.is_mixed else size)


def _attention(shapes: ModelShapes, plan: Plan) -> int:
    """Bytes per token between the projections: queries, keys, values, output, and scores where they exist."""
    size, length = plan.compute_size, shapes.positions or plan.sequence
    queries, keys = shapes.heads * shapes.head_size, shapes.kv_heads * shapes.head_size
    scores = shapes.heads * length
    has_scores = plan.recompute != "selective"
    mask = _mask_size(plan, size)
    norms = (4 + size) * (queries + keys) + 4 * (shapes.heads + shapes.kv_heads) if shapes.has_head_norms else 0
    if plan.attention == "eager":
        kept = 4 + (mask + size if shapes.attention_dropout else (size if size < 4 else 0))
        return norms + 4 * queries * size + (scores * kept if has_scores else 0)
    if plan.device_type == "cpu" and shapes.attention_dropout:
        # without a fused kernel for dropout torch computes in fp32: softmax, mask, product
        return norms + queries * (3 * 4 + size) + (scores * 3 * 4 if has_scores else 0)
    if shapes.window is not None and length > shapes.window:  # a mask, so that keys and values are repeated
        return norms + 4 * queries * size + 4 * shapes.heads
    # values that are a view of one projection hold the whole of it; the CPU's kernel copies them instead
    fused = queries + (keys if plan.device_type != "cpu" else 0) if shapes.is_fused and shapes.has_rotary else 0
    return norms + (2 * queries + 2 * keys + fused) * size + 4 * shapes.heads


def _experts(shapes: ModelShapes, plan: Plan) -> int:
    """Bytes per token of the routed experts: a grouped product, which autocast leaves in the parameters' precision."""
    assert shapes.experts is not None
    used, number = shapes.experts
    rows = used * plan.parameter_size * (4 * shapes.expert_inner + 2 * shapes.hidden)
    return rows + 4 * number + used * (3 * 8 + 8 + 4 + 4) + 4


def _autocast_bytes(shapes: ModelShapes, plan: Plan) -> int:
    """Autocast's copies of the linear weights: kept for the backward pass, unless the layers are computed again."""
    if not plan.is_mixed:
        return 0
    if plan.recompute == "full":
        return plan.compute_size * shapes.hidden * shapes.vocabulary
    return plan.compute_size * shapes.linear_parameters


def _mask_size(plan: Plan, size: int) -> int:
    # a CPU keeps dropout masks in the dtype of what is dropped, a GPU as one byte
    return size if plan.device_type == "cpu" else 1


def _inner(shapes: ModelShapes) -> int:
    return shapes.expert_inner * (shapes.experts[0] if shapes.experts else 1) if shapes.sparse_layers else shapes.inner
