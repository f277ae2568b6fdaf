"""The one call that measuring needs: a module and its first batch in, its FLOPs as a linear model out, with evidence.

Both counts are made wherever they can be. They agree within 0.1 %, or the one that saw more is taken and the record
says why. Nothing here guesses: without a count the model is None, and the reason names the argument that helps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from effprof.errors import EffprofError
from effprof.workload.architecture import Architecture, from_hf_config
from effprof.workload.batch import TokenTensors, find_samples, find_tokens, tensors_of
from effprof.workload.coefficients import from_operations
from effprof.workload.flops import counts_for, flops_model
from effprof.workload.hf_config import FoundConfig, find_config
from effprof.workload.model import FlopsModel
from effprof.workload.operations import CountFailed, OperationCount, count_training_step, unwrap

TOLERANCE = 1e-3
HELP = "pass flops_per_step= (your own figure) or model_config= (the model's config.json)"


@dataclass
class FlopsFacts:
    """Where a model's FLOPs come from, in the words of `effprof.runlog.schema.FlopsRecord`.

    Attributes:
        source: "closed_form" or "operation_count"; None where neither could be made.
        reason: why `source` is None, or what the figure rests on.
        counts: FLOPs of the first micro-batch by both counts, and their relative difference.
        by_dtype: share of the FLOPs per dtype ("bf16"), sums to 1.
        recompute_share: recomputed forward FLOPs over model FLOPs; None without an operation count.
        model: what is known of the model: class, family, active parameters, pad id, encoder-decoder, experts.
        agrees: whether the two counts are within 0.1 %; None with fewer than two.
    """

    source: str | None = None
    reason: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    by_dtype: dict[str, float] = field(default_factory=dict)
    recompute_share: float | None = None
    window: int | None = None
    causal: bool | None = None
    coverage: float | None = None
    uncounted: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    seconds: float | None = None
    model: dict[str, Any] = field(default_factory=dict)
    agrees: bool | None = None


def detect(
    module: nn.Module,
    batch: Any,
    *,
    config: Any = None,
    step: Callable[[nn.Module, Any], Any] | None = None,
    context: Callable[[], AbstractContextManager[Any]] | None = None,
) -> tuple[FlopsModel | None, FlopsFacts]:
    """FLOPs of training `module` on batches like `batch`, without touching it.

    Args:
        module: what is trained: a transformers model, a LightningModule, any nn.Module.
        batch: the first micro-batch, as the training step gets it.
        config: the model's config where the module has none: mapping, transformers config or path of a config.json.
        step: `step(copy, batch)` returns the loss; by default `training_step(batch, 0)`, else the module is called.
        context: gives the context of the forward pass (autocast).

    Returns:
        The linear model (None where FLOPs could not be counted) and the facts around it.
    """
    start = time.perf_counter()
    module = unwrap(module)
    facts = FlopsFacts()
    tokens = find_tokens(batch)
    found, architecture, no_form = _closed_form(module, config)
    if found is not None:
        facts.model.update(_config_facts(found, architecture))
    count, no_count = _operations(module, batch, step, context, tokens, wanted=architecture is None)
    if count is not None:
        _add_count_facts(facts, count)
    else:
        facts.by_dtype = _declared_dtype(module, context)
    closed = None if architecture is None else _evaluate(architecture, tokens, batch)
    facts.counts = _side_by_side(closed, count)
    model = _choose(facts, module, tokens, batch, architecture, closed, count, found, no_form, no_count)
    if model is not None:
        facts.window, facts.causal = model.window, model.causal
    facts.seconds = time.perf_counter() - start
    return model, facts


def _closed_form(module: nn.Module, config: Any) -> tuple[FoundConfig | None, Architecture | None, str]:
    try:
        found = find_config(module, config)
    except EffprofError as error:
        return None, None, error.message
    if found is None:
        return None, None, "no Hugging Face config on the module"
    try:
        return found, from_hf_config(found.values), ""
    except EffprofError as error:
        return found, None, error.message


def _operations(
    module: nn.Module,
    batch: Any,
    step: Callable[[nn.Module, Any], Any] | None,
    context: Callable[[], AbstractContextManager[Any]] | None,
    tokens: TokenTensors | None,
    *,
    wanted: bool,
) -> tuple[OperationCount | None, str]:
    """The operation count of the training step, else (where nothing else is known) of the inner model alone."""
    try:
        return count_training_step(module, batch, step=step, context=context), ""
    except CountFailed as error:
        reason = str(error)
    inner = _inner_model(module) if wanted else None
    if inner is None:
        return None, reason
    first = tokens.ids if tokens is not None and tokens.ids is not None else next(iter(tensors_of(batch)), None)
    if first is None:
        return None, reason
    try:
        count = count_training_step(inner, first, step=lambda copy, inputs: copy(inputs), context=context)
    except CountFailed:
        return None, reason
    note = f"only the inner {type(inner).__name__} was counted, because {reason}"
    return OperationCount(**{**vars(count), "assumptions": (*count.assumptions, note)}), ""


def _inner_model(module: nn.Module) -> nn.Module | None:
    """The one child that holds nearly all parameters."""
    total = sum(parameter.numel() for parameter in module.parameters())
    for child in module.children():
        if sum(parameter.numel() for parameter in child.parameters()) > 0.95 * total > 0:
            return child
    return None


def _choose(
    facts: FlopsFacts,
    module: nn.Module,
    tokens: TokenTensors | None,
    batch: Any,
    architecture: Architecture | None,
    closed: float | None,
    count: OperationCount | None,
    found: FoundConfig | None,
    no_form: str,
    no_count: str,
) -> FlopsModel | None:
    is_frozen = not all(parameter.requires_grad for parameter in module.parameters())
    if count is not None and count.flops == 0:
        count, no_count = None, "the training step runs no matrix product that could be counted"
    if architecture is not None and closed is not None:
        if count is None and not is_frozen:
            facts.source = "closed_form"
            facts.reason = f"closed form alone: {no_count}"
            if found is not None and not found.is_whole:
                facts.assumptions.append("parts of the module outside the Hugging Face model are not counted")
            return flops_model(architecture)
        if count is not None and _prefers_closed_form(facts, closed, count, is_frozen):
            return flops_model(architecture)
    if count is None:
        facts.source = None
        facts.reason = f"{no_count}; {no_form or 'the closed form assumes that all parameters are trained'}; {HELP}"
        return None
    model, notes = from_operations(count, tokens, find_samples(batch), architecture, module)
    if model is None:
        facts.reason = f"the batch has no tensor whose size the FLOPs could be related to; {HELP}"
        return None
    facts.source = "operation_count"
    facts.assumptions.extend(notes)
    facts.reason = facts.reason or f"operation count alone: {no_form}"
    if count.uncounted:
        facts.reason += f"; not counted: {', '.join(count.uncounted)}"
    return model


def _prefers_closed_form(facts: FlopsFacts, closed: float, count: OperationCount, is_frozen: bool) -> bool:
    """Decide between two counts, and say in `facts` why."""
    difference = count.flops / closed - 1
    facts.agrees = abs(difference) <= TOLERANCE
    if facts.agrees:
        facts.source, facts.reason = "closed_form", f"both counts agree within {abs(difference):.3%}"
        return True
    if is_frozen:
        facts.agrees = None
        facts.reason = f"operation count: some parameters are frozen ({difference:+.1%} against training all)"
        return False
    if count.uncounted:
        facts.source = "closed_form"
        facts.reason = f"closed form: the operation count ({difference:+.2%}) misses {', '.join(count.uncounted)}"
        return True
    facts.reason = f"operation count: it sees {difference:+.2%} against the closed form of the config"
    return False


def _evaluate(architecture: Architecture, tokens: TokenTensors | None, batch: Any) -> float | None:
    counts = batch_counts(architecture, tokens, batch)
    return None if counts is None else flops_model(architecture).evaluate(counts)


def batch_counts(architecture: Architecture, tokens: TokenTensors | None, batch: Any) -> dict[str, float] | None:
    """Counters of `batch` as if it held no padding; None where the architecture needs tokens and there are none."""
    if architecture.positions_per_sample is not None:
        samples = find_samples(batch)
        return None if samples is None else counts_for(architecture, samples)
    if tokens is None:
        return None
    samples, length = tokens.shape
    target = tokens.target_shape() if architecture.is_encoder_decoder else None
    return counts_for(architecture, samples, length, None if target is None else target[1])


def _side_by_side(closed: float | None, count: OperationCount | None) -> dict[str, Any]:
    both = {"closed_form": closed, "operation_count": None if count is None else count.flops, "difference": None}
    if closed and count is not None:
        both["difference"] = count.flops / closed - 1
    return both


def _add_count_facts(facts: FlopsFacts, count: OperationCount) -> None:
    total = sum(count.by_dtype.values())
    facts.by_dtype = {name: flops / total for name, flops in count.by_dtype.items()} if total else {}
    facts.recompute_share = count.recompute_flops / count.flops if count.flops else None
    facts.coverage = count.coverage
    facts.uncounted = list(count.uncounted)
    facts.assumptions = list(count.assumptions)


def _config_facts(found: FoundConfig, architecture: Architecture | None) -> dict[str, Any]:
    values = found.values
    facts: dict[str, Any] = {
        "family": values.get("model_type"),
        "name": next(iter(values.get("architectures") or ()), None),
        "pad_token_id": values.get("pad_token_id"),
        "is_encoder_decoder": bool(values.get("is_encoder_decoder")),
    }
    if architecture is not None:
        facts["parameters_active"] = architecture.parameters_active
        facts["experts"] = list(architecture.experts) if architecture.experts else None
        facts["is_encoder_decoder"] = architecture.is_encoder_decoder
    return facts


def _declared_dtype(module: nn.Module, context: Callable[[], AbstractContextManager[Any]] | None) -> dict[str, float]:
    """The dtype of the matmuls where no operation was seen: autocast's if it is on, else the parameters'."""
    from effprof.workload.counter import dtype_name

    parameter = next((each for each in module.parameters() if each.is_floating_point()), None)
    if parameter is None:
        return {}
    if context is not None:
        with context():
            if torch.is_autocast_enabled(parameter.device.type):
                return {dtype_name(torch.get_autocast_dtype(parameter.device.type), parameter.device): 1.0}
    return {dtype_name(parameter.dtype, parameter.device): 1.0}
