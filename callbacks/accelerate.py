"""`attach` measures a loop that Hugging Face's Accelerate prepared."""

from __future__ import annotations

from typing import Any

import accelerate
import torch

from effprof.callbacks.hooks import HookedLoop, unwrapped
from effprof.measure.placement import Placement, placement_from_environment

_PRECISIONS = {"no": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed", "fp8": "fp8"}


def attach(accelerator: Any, model: torch.nn.Module, *optimizers: Any, **settings: Any) -> HookedLoop:
    """Measure a loop between `accelerator.prepare` and its end, with nothing changed inside it.

    ::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        run = attach(accelerator, model, optimizer)
        for batch in run.watch(loader):
            with accelerator.accumulate(model):
                ...
        run.close()

    `accelerator.accumulate` is followed: a step ends where the optimizer really steps. With DeepSpeed as Accelerate's
    backend pass the prepared model (an engine) to `effprof.callbacks.deepspeed.attach` instead.

    Args:
        accelerator: the `Accelerator`.
        model: the prepared model, as the loop calls it.
        optimizers: the prepared optimizers.
        settings: arguments of `effprof.callbacks.hooks.HookedLoop` and of `StepProfiler`, `run_dir` among them.

    Returns:
        The loop under measurement: `run_dir`, `watch`, `phase`, `close`, a context manager.

    Raises:
        EffprofError: the run directory cannot be agreed on or written.
    """
    module = accelerator.unwrap_model(model)
    return HookedLoop(
        model,
        [unwrapped(optimizer) for optimizer in optimizers],
        module=getattr(module, "_orig_mod", module),  # the one inside a compiled module
        device=accelerator.device,
        framework="accelerate",
        framework_version=accelerate.__version__,
        placement=_placement(accelerator),
        config={
            "precision": _PRECISIONS.get(str(accelerator.mixed_precision), str(accelerator.mixed_precision)),
            "strategy": str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type)),
        },
        context=accelerator.autocast,
        **settings,
    )


def _placement(accelerator: Any) -> Placement:
    """The launcher's placement; a process that Accelerate runs alone is alone, whatever the environment says."""
    return Placement() if accelerator.num_processes == 1 else placement_from_environment()
