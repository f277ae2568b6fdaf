"""Expert load of mixture-of-experts layers, from the sampled micro-batches in the ranks' logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from effprof.analysis.model import Moe, MoeLayer, Warning
from effprof.analysis.steps import data_parallel_groups
from effprof.runlog.reader import Run


@dataclass
class _Load:
    tokens: list[int] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    dropped: int | None = None


def measure_moe(run: Run) -> tuple[Moe | None, list[Warning]]:
    """Tokens per expert and layer, summed; None with a warning where a routed model was not sampled."""
    loads: dict[str, _Load] = {}
    samples = 0
    for attempt in run.attempts:
        for group in data_parallel_groups(attempt).values():
            # ranks that share a batch see the same tokens: one of them is counted
            for line in max(group, key=lambda rank: len(rank.experts)).experts:
                samples += 1
                dropped = line.dropped or [None] * len(line.layers)
                for name, tokens, lost in zip(line.layers, line.tokens_per_expert, dropped, strict=False):
                    _add(loads.setdefault(name, _Load()), tokens, lost)
    if not loads:
        model = run.record.model
        total, active = model.get("parameters_total"), model.get("parameters_active")
        if total and active and active < total:
            message = "expert load: no router was recognised, pass routers= to name the modules that route"
            return None, [Warning(code="moe_not_sampled", message=message)]
        return None, []
    layers = [
        MoeLayer(
            name=name,
            tokens_per_expert=load.tokens,
            imbalance=imbalance(load.tokens),
            batch_imbalance=median(load.ratios) if load.ratios else None,
            dropped_share=_dropped_share(load),
        )
        for name, load in loads.items()
    ]
    known = [layer.imbalance for layer in layers if layer.imbalance is not None]
    return Moe(layers=layers, imbalance=fmean(known) if known else None, samples=samples), []


def imbalance(tokens_per_expert: Sequence[int]) -> float | None:
    """Busiest expert's tokens over the mean; None where no token was routed."""
    total = sum(tokens_per_expert)
    return max(tokens_per_expert) * len(tokens_per_expert) / total if total > 0 else None


def _add(load: _Load, tokens: list[int], dropped: int | None) -> None:
    width = max(len(load.tokens), len(tokens))
    before = load.tokens + [0] * (width - len(load.tokens))
    load.tokens = [a + b for a, b in zip(before, tokens + [0] * (width - len(tokens)), strict=True)]
    ratio = imbalance(tokens)
    if ratio is not None:
        load.ratios.append(ratio)
    if dropped is not None:
        load.dropped = (load.dropped or 0) + dropped


def _dropped_share(load: _Load) -> float | None:
    if load.dropped is None:
        return None
    made = load.dropped + sum(load.tokens)
    return load.dropped / made if made > 0 else 0.0
