"""From one operation count to FLOPs per token, attended pair and sample, so that they hold for other lengths too."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from effprof.workload.architecture import Architecture
from effprof.workload.batch import TokenTensors
from effprof.workload.counter import AttentionShape
from effprof.workload.flops import counts_for, flops_model, pairs_of
from effprof.workload.model import FlopsModel
from effprof.workload.operations import OperationCount

_PLAIN = Architecture("", "", 0, 0, (), causal=True)


def from_operations(
    count: OperationCount,
    tokens: TokenTensors | None,
    samples: int | None,
    architecture: Architecture | None,
    module: nn.Module,
) -> tuple[FlopsModel | None, list[str]]:
    """The linear model that gives `count` for its own batch, and what it takes for granted.

    Attention over the batch's own sequences goes to pairs, everything else to tokens; without tokens, or for a model
    that takes a fixed number of positions, all goes to samples. None where the batch has neither.
    """
    total = parameters_active(count, tokens, architecture, module)
    if tokens is None or (architecture is not None and architecture.positions_per_sample is not None):
        if not samples:
            return None, []
        positions = 1 if architecture is None else architecture.positions_per_sample or 1
        each = {"samples": count.flops / samples}
        conventions: dict[str, Mapping[str, float]] = dict.fromkeys(("exact", "megatron", "palm"), each)
        if architecture is not None:
            conventions["6n"] = {"samples": 6.0 * total * positions}
        return FlopsModel(conventions, causal=None if not count.attention else False), []
    if architecture is not None and architecture.is_encoder_decoder:
        return _scale_encoder_decoder(count, tokens, architecture, total)
    return _decoder(count, tokens, total)


def parameters_active(
    count: OperationCount, tokens: TokenTensors | None, architecture: Architecture | None, module: nn.Module
) -> int:
    """Parameters that one token meets. Without an architecture: all, unless the count shows that some sit idle."""
    if architecture is not None:
        return architecture.parameters_active
    parameters = {id(each): each.numel() for each in module.parameters()}
    total = sum(parameters.values())
    if tokens is None or not all(each.requires_grad for each in module.parameters()):
        return total
    lookups = {id(part.weight): part.weight.numel() for part in module.modules() if isinstance(part, nn.Embedding)}
    multiplied = (count.flops - count.attention_flops) / (6 * max(tokens.positions, 1))
    matrices = {id(each): each.numel() for each in module.parameters() if each.dim() > 1 and id(each) not in lookups}
    idle = sum(matrices.values()) - multiplied
    # norms and biases blur the figure by less than this; experts leave far more idle
    return total - round(idle) if idle > 0.02 * total else total


def _decoder(count: OperationCount, tokens: TokenTensors, parameters: int) -> tuple[FlopsModel, list[str]]:
    samples, length = tokens.shape
    exact: dict[str, float] = {}
    notes: list[str] = []
    rest = float(count.flops - count.attention_flops)
    is_causal = any(_is_causal(shape) for shape in count.attention)
    windows = sorted({shape.window for shape in count.attention if shape.window is not None})
    units = counts_for(_PLAIN, samples, length)
    units["window_pairs"] = samples * pairs_of(length, causal=True, window=windows[0] if windows else None)
    if not is_causal:
        units["pairs"] = samples * length**2
    ignoring: dict[str, dict[str, float]] = {"megatron": {}, "palm": {}}
    for shape, flops in count.attention.items():
        counter = _counter_of(shape, length, is_causal, windows)
        if counter is None:
            rest += flops
            notes.append(f"attention of {shape.queries} × {shape.keys} positions is counted per token")
            continue
        each = flops / units[counter]
        exact[counter] = exact.get(counter, 0.0) + each
        # the same matmuls over all pairs of the square
        square = flops / shape.pairs * shape.queries * shape.keys / units["square_pairs"]
        halves = _is_causal(shape) or shape.window is not None
        for name, share in (("megatron", 0.5 if halves else 1.0), ("palm", 1.0)):
            ignoring[name]["square_pairs"] = ignoring[name].get("square_pairs", 0.0) + share * square
    linear = {"tokens": rest / tokens.positions}
    conventions: dict[str, Mapping[str, float]] = {
        "exact": {**linear, **exact},
        "megatron": {**linear, **ignoring["megatron"]},
        "palm": {**linear, **ignoring["palm"]},
        "6n": {"tokens": 6.0 * parameters},
    }
    causal = None if not count.attention else is_causal or bool(windows)
    return FlopsModel(conventions, window=windows[0] if windows else None, causal=causal), notes


def _counter_of(shape: AttentionShape, length: int, is_causal: bool, windows: list[int]) -> str | None:
    # a step may drop the last position (inputs are ids[:-1]); the counters still hold all of them
    if shape.queries != shape.keys or abs(shape.queries - length) > 1:
        return None
    if shape.window is not None:
        return "window_pairs" if shape.window == windows[0] else None
    if _is_causal(shape):
        return "pairs"
    if shape.pairs == shape.queries**2:
        return "square_pairs" if is_causal else "pairs"
    return None


def _is_causal(shape: AttentionShape) -> bool:
    return shape.window is None and shape.pairs == pairs_of(shape.queries, causal=True) and shape.queries == shape.keys


def _scale_encoder_decoder(
    count: OperationCount, tokens: TokenTensors, architecture: Architecture, parameters: int
) -> tuple[FlopsModel, list[str]]:
    """Frozen or altered encoder-decoders: the closed form's terms, scaled to what was counted."""
    model = flops_model(architecture)
    samples, length = tokens.shape
    target = tokens.target_shape()
    units = counts_for(architecture, samples, length, None if target is None else target[1])
    exact = dict(model.conventions["exact"])
    pairs = {name: flops for name, flops in exact.items() if name.endswith("pairs")}
    attention = sum(flops * units[name] for name, flops in pairs.items())
    linear = sum(flops * units[name] for name, flops in exact.items() if name not in pairs)
    scale_pairs = count.attention_flops / attention if attention else 1.0
    scale_linear = (count.flops - count.attention_flops) / linear if linear else 1.0
    conventions: dict[str, Mapping[str, float]] = {
        name: {
            counter: flops * (scale_pairs if counter.endswith("pairs") else scale_linear)
            for counter, flops in model.conventions[name].items()
        }
        for name in ("exact", "megatron", "palm")
    }
    conventions["6n"] = {"tokens": 6.0 * parameters}
    note = "source and target tokens keep the closed form's proportion"
    return FlopsModel(conventions, window=model.window, causal=model.causal), [note]
