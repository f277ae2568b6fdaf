"""Predicts a run's memory at its first batch: in closed form where the model has a config, and on a fake copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from effprof.errors import EffprofError
from effprof.workload.memory import (
    OPTIMIZER_STATE,
    PRECISIONS,
    Plan,
    optimizer_temporaries,
    predict_memory,
    state_forecast,
)

if TYPE_CHECKING:
    import torch

    from effprof.workload.memory_live import LiveMemory

# Above this share of repeated forward FLOPs whole layers are computed again; below it only parts.
_FULL_RECOMPUTE = 0.25
_LARGEST = 8


def forecast_memory(
    module: torch.nn.Module,
    batch: Any,
    *,
    config: Mapping[str, Any],
    model_config: Any = None,
    recompute_share: float | None = None,
    step: Callable[[Any, Any], Any] | None = None,
    context: Callable[[], Any] | None = None,
    device_type: str = "cpu",
    world_size: int = 1,
    clears_late: bool = False,
) -> dict[str, Any]:
    """What `RunRecord.memory` holds before the first step: `closed_form`, `fake_copy`, each None with a reason.

    Args:
        module, batch, step, context: as for the operation count.
        config: the run's settings as recorded (precision, optimizers, strategy, accumulate).
        model_config: the model's config where the module has none.
        recompute_share: recomputed FLOPs over model FLOPs.
        clears_late: whether the last step's gradients live until the forward pass is over.
    """
    start = time.perf_counter()
    found: dict[str, Any] = {"closed_form": None, "fake_copy": None, "reasons": {}}
    plan = _plan(module, batch, config, recompute_share, device_type, world_size, found)
    if plan is not None:
        plan = replace(plan, clears_late=clears_late)
        _add_closed_form(found, module, model_config, plan)
    _add_rehearsal(found, module, batch, step, context)
    if found["fake_copy"] is not None and found["closed_form"] is not None and plan is not None:
        found["fake_copy"].update(_with_states(found["fake_copy"], found["closed_form"], plan))
    found["seconds"] = time.perf_counter() - start
    return found


def live_facts(live: LiveMemory) -> dict[str, Any]:
    """A measured or rehearsed micro-batch as plain values."""
    return {
        "kept_bytes": live.kept_bytes,
        "forward_peak_bytes": live.forward_peak_bytes,
        "peak_bytes": live.peak_bytes,
        "peak_gradients_bytes": live.peak_gradients_bytes,
        "peak_activations_bytes": live.peak_activations_bytes,
        "peak_temporary_bytes": live.peak_temporary_bytes,
        "peak_at": live.peak_at,
        "gradients_bytes": live.gradients_bytes,
        "largest": [list(row) for row in live.largest[:_LARGEST]],
    }


def _with_states(rehearsed: Mapping[str, Any], states: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The peak of a whole step: states that are always there, and the fullest of its moments with what fills it."""
    gradients = states["gradients_bytes"]
    before = gradients if plan.accumulates else 0
    # moment: gradients, activations, temporaries
    moments = {
        "forward": (gradients if plan.clears_late else before, rehearsed["forward_peak_bytes"], 0),
        "backward": (
            max(before, rehearsed["peak_gradients_bytes"]),
            rehearsed["peak_activations_bytes"],
            rehearsed["peak_temporary_bytes"],
        ),
        "optimizer": (gradients, 0, states["optimizer_temporary_bytes"]),
    }
    name = max(moments, key=lambda each: sum(moments[each]))
    at_peak = dict(zip(("gradients_bytes", "activations_bytes", "temporary_bytes"), moments[name], strict=True))
    always = states["parameters_bytes"] + states["optimizer_bytes"]
    return {"device_peak_bytes": always + sum(moments[name]), "step_peak_at": name, "at_peak": at_peak}


def _add_closed_form(found: dict[str, Any], module: torch.nn.Module, model_config: Any, plan: Plan) -> None:
    from effprof.workload.hf_config import find_config

    total = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    try:
        config = find_config(module, model_config)
        if config is None or not config.is_whole or trained != total:
            what = "no Hugging Face config describes the whole module" if trained == total else "parameters are frozen"
            found["reasons"]["closed_form"] = f"activations not known in closed form: {what}"
            forecast = state_forecast(total, trained, plan)
        else:
            forecast = predict_memory(config.values, plan)
            if forecast.reason:
                found["reasons"]["closed_form"] = forecast.reason
    except EffprofError as error:
        found["reasons"]["closed_form"] = error.message
        forecast = state_forecast(total, trained, plan)
    found["closed_form"] = {name: value for name, value in vars(forecast).items() if name != "reason"}
    found["closed_form"]["parts"] = dict(forecast.parts)
    sizes = [parameter.numel() * parameter.element_size() for parameter in module.parameters()]
    found["closed_form"]["optimizer_temporary_bytes"] = optimizer_temporaries(
        plan, forecast.gradients_bytes, max(sizes, default=0)
    )
    found["plan"] = dict(vars(plan))


def _add_rehearsal(found: dict[str, Any], module: torch.nn.Module, batch: Any, step: Any, context: Any) -> None:
    from effprof.workload.counter import CountFailed
    from effprof.workload.memory_fake import rehearse_memory

    try:
        rehearsed = rehearse_memory(module, batch, step=step, context=context)
    except CountFailed as error:
        found["reasons"]["fake_copy"] = str(error)
        return
    found["fake_copy"] = {**live_facts(rehearsed.live), "seconds": rehearsed.seconds}
    found["assumptions"] = ["the batch was taken to hold no padding", *rehearsed.assumptions]


def _plan(
    module: torch.nn.Module,
    batch: Any,
    config: Mapping[str, Any],
    recompute_share: float | None,
    device_type: str,
    world_size: int,
    found: dict[str, Any],
) -> Plan | None:
    from effprof.workload.batch import find_samples, find_tokens

    optimizer = _optimizer(config.get("optimizers") or ())
    if optimizer is None:
        found["reasons"]["closed_form"] = f"optimizer state not known for {config.get('optimizers')}"
        return None
    tokens, samples = find_tokens(batch), find_samples(batch)
    rows, length = tokens.shape if tokens is not None else (samples or 1, 1)
    stage = _zero_stage(str(config.get("strategy", "")))
    return Plan(
        micro_batch=int(rows),
        sequence=int(length),
        precision=_precision(module, config),
        optimizer=optimizer,
        shards=world_size if stage else 1,
        zero_stage=stage,
        recompute="full" if recompute_share is not None and recompute_share > _FULL_RECOMPUTE else "none",
        attention="eager" if _attention_of(module) == "eager" else "sdpa",
        accumulates=int(config.get("accumulate", 1) or 1) > 1,
        has_gradient_buckets=str(config.get("strategy", "")).startswith("DDP") and world_size > 1,
        device_type=device_type,
    )


def _optimizer(names: Iterable[Any]) -> str | None:
    """The optimizer's kind; without one on record (a plain loop) AdamW is what most use, and the plan says so."""
    known = [str(name).lower().replace("_", "") for name in names]
    if not known:
        return "adamw"
    return known[0] if len(set(known)) == 1 and known[0] in OPTIMIZER_STATE else None


def _precision(module: torch.nn.Module, config: Mapping[str, Any]) -> str:
    import torch

    named = str(config.get("precision", ""))
    if named in PRECISIONS:
        return named
    parameter = next(module.parameters(), None)
    halves = {torch.bfloat16: "bf16-true", torch.float16: "16-true"}
    return halves.get(parameter.dtype, "32-true") if parameter is not None else "32-true"


def _zero_stage(strategy: str) -> int:
    if "FSDP" in strategy:
        return 3
    return 2 if "DeepSpeed" in strategy else 0


def _attention_of(module: torch.nn.Module) -> str:
    for part in module.modules():
        name = getattr(getattr(part, "config", None), "_attn_implementation", None)
        if name is not None:
            return str(name)
    return "sdpa"
