"""What is found out once, at the first batch: the model's FLOPs, the tokens' rules and the device's peak."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from effprof.hardware.ceiling import fp32_products_run_in, known_ceilings
from effprof.hardware.identity import DeviceIdentity
from effprof.hardware.peak import resolve_peak
from effprof.measure.tokens import TokenCounter
from effprof.runlog.schema import FlopsRecord, RunRecord

if TYPE_CHECKING:
    import torch


@dataclass
class Detection:
    """Facts of the model and its device, in the words of the run's record."""

    flops: FlopsRecord = field(default_factory=FlopsRecord)
    model: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)
    given_flops: int = 0  # this rank's share of `flops_per_step`

    def put_into(self, record: RunRecord) -> None:
        """Add what was found to the run's record."""
        record.flops = self.flops
        record.model.update(self.model)
        record.hardware.update(self.hardware)

    def token_counter(self, tokens_fn: Callable[[Any], Any] | None) -> TokenCounter:
        """A counter of tokens and pairs under the mask that the model uses."""
        return TokenCounter(
            window=self.flops.window,
            causal=self.flops.causal,
            pad_id=self.model.get("pad_token_id"),
            tokens_fn=tokens_fn,
            encoder_decoder=self.model.get("is_encoder_decoder"),
        )


def detect_workload(
    module: torch.nn.Module | None,
    batch: Any,
    device: DeviceIdentity,
    *,
    config: Any = None,
    step: Callable[[Any, Any], Any] | None = None,
    context: Callable[[], Any] | None = None,
    peak_tflops: float | None = None,
    flops_per_step: float | None = None,
    data_parallel_size: int = 1,
    measures_peak: bool = True,
) -> Detection:
    """Detect FLOPs and peak for one micro-batch of `module` on `device`. Never touches the live module.

    Args:
        measures_peak: whether this process resolves the peak (a CPU's is measured, which takes seconds).
    """
    found = Detection()
    if module is not None:
        found.model.update(_parameters(module))
    _detect_flops(found, module, batch, config, step, context)
    if flops_per_step is not None:
        found.flops = FlopsRecord(
            conventions={"exact": {"flops": 1.0}},
            source="given",
            reason="flops_per_step= was given",
            counts=found.flops.counts,
            by_dtype=found.flops.by_dtype,
            window=found.flops.window,
            causal=found.flops.causal,
        )
        found.given_flops = round(flops_per_step / data_parallel_size)
    elif not found.flops.conventions:
        found.warnings.append({"code": "no_flops", "message": f"FLOPs not known: {found.flops.reason}"})
    if measures_peak:
        _resolve_peak(found, device, peak_tflops)
        # a peak that was given needs no measurement, and gets none
        if peak_tflops is None and (ceilings := known_ceilings(device)):
            found.hardware["ceilings"] = ceilings
    return found


def state_bytes(module: torch.nn.Module, optimizers: Iterable[Any]) -> dict[str, int]:
    """Bytes that this rank holds of parameters, gradients and optimizer state, by name in the run's record.

    Without an optimizer the state's size is left out, not 0. An optimizer that is None is passed over.
    """
    known = [optimizer for optimizer in optimizers if optimizer is not None]
    parameters = list(module.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    states = [
        value
        for optimizer in known
        for state in optimizer.state.values()
        if isinstance(state, Mapping)
        for value in state.values()
    ]
    # a gradient that was already set to None again has the size of its parameter
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    held = {
        "parameters_bytes": _local_bytes(parameters),
        "gradients_bytes": _local_bytes(gradients or trained),
    }
    return held | {"optimizer_bytes": _local_bytes(states)} if known else held


def _detect_flops(
    found: Detection, module: torch.nn.Module | None, batch: Any, config: Any, step: Any, context: Any
) -> None:
    if module is None or batch is None:
        what = "model was given: pass StepProfiler(model)" if module is None else "batch was shown: pass step(batch)"
        found.flops.reason = f"no {what}, or flops_per_step="
        return
    from effprof.workload.detect import detect

    try:
        model, facts = detect(module, batch, config=config, step=step, context=context)
    except Exception as error:
        found.flops.reason = f"{type(error).__name__}: {error}; pass flops_per_step= or model_config="
        return
    found.flops = FlopsRecord(
        conventions={name: dict(terms) for name, terms in model.conventions.items()} if model else {},
        source=facts.source,
        reason=facts.reason,
        counts=facts.counts,
        by_dtype=facts.by_dtype,
        recompute_share=facts.recompute_share,
        window=facts.window,
        causal=facts.causal,
        coverage=facts.coverage,
        uncounted=facts.uncounted,
        assumptions=facts.assumptions,
        seconds=facts.seconds,
    )
    found.model.update(facts.model)


def _resolve_peak(found: Detection, device: DeviceIdentity, peak_tflops: float | None) -> None:
    by_dtype = found.flops.by_dtype or {_dtype_of(found, device): 1.0}
    peak = resolve_peak(device, by_dtype, peak_tflops=peak_tflops)
    if isinstance(peak, str):
        found.warnings.append({"code": "no_peak", "message": peak})
        return
    found.hardware["peak"] = {
        "flops_per_s": peak.flops_per_s,
        "dtype": peak.dtype,
        "source": peak.source,
        "kind": peak.kind,
        "parts": peak.parts,
        "is_cached": peak.is_cached,
    }


def _dtype_of(found: Detection, device: DeviceIdentity) -> str:
    """The parameters' dtype, where no operation was seen that would tell better."""
    dtype = str(found.model.get("dtype", "fp32"))
    return fp32_products_run_in(device.type) if dtype == "fp32" else dtype


def _parameters(module: torch.nn.Module) -> dict[str, Any]:
    import torch

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
    parameters = list(module.parameters())
    facts: dict[str, Any] = {
        "class": type(module).__name__,
        "parameters_total": sum(parameter.numel() for parameter in parameters),
        "parameters_trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }
    if parameters:
        facts["dtype"] = names.get(parameters[0].dtype, "fp32")
    return facts


def _local_bytes(values: Iterable[Any]) -> int:
    total = 0
    for value in values:
        tensor = value.to_local() if hasattr(value, "to_local") else value
        if hasattr(tensor, "element_size"):
            total += tensor.numel() * tensor.element_size()
    return total
