"""Expert load of mixture-of-experts layers: how far skew bounds the speed, and how even the routing is.

Two questions with two answers. Speed: every micro-batch waits for its slowest expert-parallel rank, so skew counts per
micro-batch. Quality: what the router learned shows over the global batch, where micro-batches even each other out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from effprof.analysis.model import Moe, MoeLayer, Warning
from effprof.analysis.steps import data_parallel_groups, world_size
from effprof.runlog.reader import Run
from effprof.trace.summary import RankKernels

_ALL_TO_ALL = "communication.all_to_all"
# Strategies under which every rank runs all experts on its own tokens.
_WHOLE_LAYERS = ("DDP", "FSDP", "SingleDevice")
_Batch = tuple[int, int, int]  # attempt, step, which of a rank's samples of that step


@dataclass
class _Load:
    """What was sampled of one layer. `batches` maps a sampled step → group of ranks → tokens of each expert."""

    tokens: list[int] = field(default_factory=list)
    batches: dict[_Batch, dict[int, list[int]]] = field(default_factory=dict)
    dropped: int | None = None


def measure_moe(run: Run, kernels: Mapping[str, RankKernels] | None = None) -> tuple[Moe | None, list[Warning]]:
    """Tokens per expert and layer, and what follows; None with a warning where a routed model was not sampled.

    Args:
        kernels: the run's kernel account, for what only kernels tell.
    """
    loads: dict[str, _Load] = {}
    samples = 0
    for place, attempt in enumerate(run.attempts):
        for number, group in data_parallel_groups(attempt).items():
            # ranks that share a batch see the same tokens: one of them is counted
            seen: Counter[int] = Counter()
            for line in max(group, key=lambda rank: len(rank.experts)).experts:
                samples += 1
                batch = (place, line.step, seen[line.step])
                seen[line.step] += 1
                dropped = line.dropped or [None] * len(line.layers)
                for name, tokens, lost in zip(line.layers, line.tokens_per_expert, dropped, strict=False):
                    _add(loads.setdefault(name, _Load()), batch, number, tokens, lost)
    if not loads:
        model = run.record.model
        total, active = model.get("parameters_total"), model.get("parameters_active")
        if total and active and active < total:
            message = "expert load: no router was recognised, pass routers= to name the modules that route"
            return None, [Warning(code="moe_not_sampled", message=message)]
        return None, []
    expert_parallel = _expert_parallel(run)
    capacity = run.record.model.get("expert_capacity")
    layers = [
        _layer(name, load, expert_parallel, capacity if isinstance(capacity, int) else None)
        for name, load in loads.items()
    ]
    moe = Moe(
        layers=layers,
        imbalance=_mean(layer.imbalance for layer in layers),
        samples=samples,
        speed_bound=_mean(layer.speed_bound for layer in layers),
        global_batch_imbalance=_mean(layer.global_batch_imbalance for layer in layers),
        expert_parallel_size=expert_parallel,
        all_to_all_exposed_share=_exposed_share(kernels or {}),
        grouped_gemm_efficiency=_grouped_efficiency(kernels or {}),
    )
    return moe, _explain(moe)


def imbalance(tokens_per_expert: Sequence[int]) -> float | None:
    """Busiest expert's tokens over the mean; None where no token was routed."""
    total = sum(tokens_per_expert)
    return max(tokens_per_expert) * len(tokens_per_expert) / total if total > 0 else None


def rank_imbalance(tokens_per_expert: Sequence[int], size: int) -> float | None:
    """Busiest expert-parallel rank over the mean, experts laid out in order; None where they don't divide."""
    if size < 1 or len(tokens_per_expert) % size:
        return None
    each = len(tokens_per_expert) // size
    return imbalance([sum(tokens_per_expert[first : first + each]) for first in range(0, len(tokens_per_expert), each)])


def _layer(name: str, load: _Load, expert_parallel: int | None, capacity: int | None) -> MoeLayer:
    micro_batches = [tokens for batch in load.batches.values() for tokens in batch.values()]
    per_batch = _median(imbalance(tokens) for tokens in micro_batches)
    bound, basis = per_batch, "expert"
    if expert_parallel == 1:
        bound, basis = 1.0, "expert_parallel_rank"
    elif expert_parallel is not None:
        # the ranks of an expert-parallel group exchange tokens: its experts see all of their micro-batches together
        pooled = [
            rank_imbalance(tokens, expert_parallel)
            for batch in load.batches.values()
            for tokens in _pool(batch, expert_parallel)
        ]
        by_rank = _median(pooled)
        if by_rank is not None:
            bound, basis = by_rank, "expert_parallel_rank"
    slots = capacity * len(load.tokens) * len(micro_batches) if capacity else 0
    return MoeLayer(
        name=name,
        tokens_per_expert=load.tokens,
        imbalance=imbalance(load.tokens),
        batch_imbalance=per_batch,
        global_batch_imbalance=_median(imbalance(_sum(batch.values())) for batch in load.batches.values()),
        speed_bound=bound,
        speed_bound_basis=basis,
        dropped_share=_dropped_share(load),
        capacity_padding_share=max(0.0, 1 - sum(load.tokens) / slots) if slots else None,
    )


def _pool(batch: dict[int, list[int]], size: int) -> list[list[int]]:
    """Tokens per expert of each expert-parallel group: `size` data-parallel neighbours, as launchers lay them out."""
    groups: dict[int, list[list[int]]] = {}
    for number, tokens in batch.items():
        groups.setdefault(number // size, []).append(tokens)
    return [_sum(found) for found in groups.values()]


def _sum(several: Iterable[Sequence[int]]) -> list[int]:
    rows = list(several)
    width = max(len(row) for row in rows)
    return [sum(row[expert] for row in rows if expert < len(row)) for expert in range(width)]


def _add(load: _Load, batch: _Batch, group: int, tokens: list[int], dropped: int | None) -> None:
    load.tokens = _sum([load.tokens, tokens])
    load.batches.setdefault(batch, {})[group] = tokens
    if dropped is not None:
        load.dropped = (load.dropped or 0) + dropped


def _dropped_share(load: _Load) -> float | None:
    if load.dropped is None:
        return None
    made = load.dropped + sum(load.tokens)
    return load.dropped / made if made > 0 else 0.0


def _expert_parallel(run: Run) -> int | None:
    """Ranks that the experts of a layer are spread over; None where the record does not say."""
    for facts in (run.record.parallel, run.record.config):
        for name in ("expert", "expert_parallel_size", "expert_model_parallel_size"):
            value = facts.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    strategy = str(run.record.parallel.get("strategy") or run.record.config.get("strategy") or "")
    is_whole = strategy.startswith(_WHOLE_LAYERS) or world_size(run.attempts[-1]) == 1
    return 1 if is_whole else None


def _exposed_share(kernels: Mapping[str, RankKernels]) -> float | None:
    """All-to-all that no computation hides, over the windows' time, mean over ranks; None where none was seen."""
    shares = [
        family.exposed_s / rank.window_s
        for rank in kernels.values()
        if (family := rank.kernels.get(_ALL_TO_ALL)) and family.exposed_s is not None and rank.window_s > 0
    ]
    return fmean(shares) if shares else None


def _grouped_efficiency(kernels: Mapping[str, RankKernels]) -> float | None:
    """FLOP/s of grouped GEMMs over those of the dense GEMMs in the same window; None without shapes of both."""
    ratios = []
    for rank in kernels.values():
        grouped, dense = rank.kernels.get("grouped_gemm"), rank.kernels.get("gemm")
        if grouped and dense and grouped.flops_per_s and dense.flops_per_s:
            ratios.append(grouped.flops_per_s / dense.flops_per_s)
    return fmean(ratios) if ratios else None


def _explain(moe: Moe) -> list[Warning]:
    warnings = []
    if moe.expert_parallel_size is None:
        message = (
            "expert load: how many ranks share the experts is not recorded; the speed bound takes each expert as a rank"
        )
        warnings.append(Warning(code="expert_parallel_unknown", message=message))
    unknown = [
        name
        for name, values in (
            ("dropped tokens", [layer.dropped_share for layer in moe.layers]),
            ("capacity padding", [layer.capacity_padding_share for layer in moe.layers]),
        )
        if all(value is None for value in values)
    ]
    if unknown:
        message = f"expert load: nothing is known of {' and '.join(unknown)}: the routers show no capacity"
        warnings.append(Warning(code="expert_capacity_unknown", message=message))
    return warnings


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
