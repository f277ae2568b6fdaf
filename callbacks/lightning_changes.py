"""How each change of `effprof.advise.changes` is made to a Lightning training, without touching its code."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from effprof.callbacks import loader_changes
from effprof.callbacks.loader_changes import Refused

Apply = Callable[[Any, Any, Any], None]


def apply_early(trainer: Any, module: Any, changes: Mapping[str, Any]) -> dict[str, str]:
    """Makes the changes that come before the strategy sets the model up; returns those refused, with the reason."""
    return _apply(EARLY, trainer, module, changes)


def apply_to_optimizers(trainer: Any, module: Any, changes: Mapping[str, Any]) -> dict[str, str]:
    """Makes the changes that need the optimizers; returns those refused, with the reason."""
    return _apply(OPTIMIZERS, trainer, module, changes)


def watch_loader(trainer: Any, changes: Mapping[str, Any], refused: dict[str, str]) -> None:
    """Has every loader of training data made again with the changes that concern it, when the Trainer asks for it.

    Args:
        refused: filled with the changes that did not fit, once the loader is known.
    """
    concerned = {name: value for name, value in changes.items() if name in LOADER}
    if not concerned:
        return
    process = trainer.strategy.process_dataloader

    def with_changes(loader: Any) -> Any:
        if trainer.training:
            for name, value in concerned.items():
                try:
                    loader = LOADER[name](trainer, loader, value)
                except Refused as error:
                    refused[name] = str(error)
        return process(loader)

    trainer.strategy.process_dataloader = with_changes


def _apply(table: Mapping[str, Apply], trainer: Any, module: Any, changes: Mapping[str, Any]) -> dict[str, str]:
    refused = {}
    for name, value in changes.items():
        if name in table:
            try:
                table[name](trainer, module, value)
            except Refused as error:
                refused[name] = str(error)
            except Exception as error:
                refused[name] = f"{type(error).__name__}: {error}"
    return refused


def _precision(trainer: Any, module: Any, value: str) -> None:
    connector = trainer._accelerator_connector
    connector._precision_flag = value
    connector._precision_plugin_flag = None
    trainer.strategy.precision_plugin = connector.precision_plugin = connector._check_and_init_precision()


def _matmul_precision(trainer: Any, module: Any, value: str) -> None:
    import torch

    torch.set_float32_matmul_precision(value)


def _accumulate(trainer: Any, module: Any, value: int) -> None:
    if not module.automatic_optimization:
        raise Refused("the module steps its optimizers itself")
    trainer.accumulate_grad_batches = value


def _compile(trainer: Any, module: Any, value: bool | str) -> None:
    models = [child for child in module.children() if any(True for _ in child.parameters())]
    if not models:
        raise Refused("the LightningModule holds no model of its own that could be compiled")
    for model in models:
        if value:
            model.compile(**({} if value is True else {"mode": value}))
        else:
            model._compiled_call_impl = None


def _gradient_checkpointing(trainer: Any, module: Any, value: bool | str) -> None:
    if value == "selective":
        raise Refused("which parts to recompute is a choice of the model's code")
    method = "gradient_checkpointing_enable" if value else "gradient_checkpointing_disable"
    found = [each for each in module.children() if hasattr(each, method)]
    for each in found:
        getattr(each, method)()
    if value and not found:
        raise Refused("the model has no gradient_checkpointing_enable")
    if not value:
        _call_instead_of_checkpoint()


def _call_instead_of_checkpoint() -> None:
    """Puts a plain call in the place of torch's checkpoint function wherever it was imported."""
    import sys

    from torch.utils import checkpoint

    original = checkpoint.checkpoint
    own = {"use_reentrant", "context_fn", "determinism_check", "debug", "early_stop", "preserve_rng_state"}

    def plain(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **{name: value for name, value in keywords.items() if name not in own})

    for module in list(sys.modules.values()):
        for name in ("checkpoint", "torch_checkpoint"):
            if getattr(module, "__dict__", {}).get(name) is original:
                setattr(module, name, plain)


def _sdpa_backend(trainer: Any, module: Any, value: str) -> None:
    import torch

    names = {"flash": "flash", "efficient": "mem_efficient", "math": "math", "cudnn": "cudnn"}
    if value not in names:
        raise Refused(f"no such backend; there are {', '.join(names)}")
    for backend in names.values():
        getattr(torch.backends.cuda, f"enable_{backend}_sdp")(backend == names[value])


def _through_models(method: str) -> Apply:
    def apply(trainer: Any, module: Any, value: Any) -> None:
        found = [each for each in module.children() if hasattr(each, method)]
        if not found:
            raise Refused(f"the model has no {method}")
        for each in found:
            getattr(each, method)(value)

    return apply


def _channels_last(trainer: Any, module: Any, value: bool) -> None:
    import torch

    module.to(memory_format=torch.channels_last if value else torch.contiguous_format)


def _log_every(trainer: Any, module: Any, value: int) -> None:
    trainer.log_every_n_steps = value


def _collect_garbage_every(trainer: Any, module: Any, value: int) -> None:
    # what lives now lives on: leaving it out makes each of the rarer collections short
    gc.collect()
    gc.freeze()
    generations = gc.get_threshold()
    gc.set_threshold(generations[0] * max(1, value), *generations[1:])


def _without_callbacks(trainer: Any, module: Any, value: list[str]) -> None:
    names = {type(callback).__name__ for callback in trainer.callbacks}
    unknown = [name for name in value if name not in names]
    if unknown:
        raise Refused(f"no callback is called {', '.join(unknown)}")
    trainer.callbacks = [callback for callback in trainer.callbacks if type(callback).__name__ not in value]


def _detect_anomaly(trainer: Any, module: Any, value: bool) -> None:
    import torch

    trainer._detect_anomaly = value
    torch.autograd.set_detect_anomaly(value)


def _deterministic(trainer: Any, module: Any, value: bool) -> None:
    import torch

    torch.use_deterministic_algorithms(value)


def _cudnn_benchmark(trainer: Any, module: Any, value: bool) -> None:
    import torch

    torch.backends.cudnn.benchmark = value


def _threads(trainer: Any, module: Any, value: int) -> None:
    import torch

    torch.set_num_threads(value)


def _ddp(argument: str) -> Apply:
    def apply(trainer: Any, module: Any, value: Any) -> None:
        if not hasattr(trainer.strategy, "_ddp_kwargs"):
            raise Refused(f"{type(trainer.strategy).__name__} is not DistributedDataParallel's")
        trainer.strategy._ddp_kwargs[argument] = value

    return apply


def _environment(trainer: Any, module: Any, value: Mapping[str, str]) -> None:
    # set by the trial's parent before the process began, as most are read when libraries load
    missing = [name for name, wanted in value.items() if os.environ.get(name) != str(wanted)]
    if missing:
        raise Refused(f"not set when the process began: {', '.join(missing)}")


def _fused_optimizer(trainer: Any, module: Any, value: bool) -> None:
    groups = list(_fusible_groups(trainer.optimizers))
    if not groups:
        raise Refused("no optimizer of this training has a fused form")
    for optimizer, group in groups:
        group["fused"] = value
        if value:
            group["foreach"] = False
            optimizer._step_supports_amp_scaling = True
            optimizer._need_device_dtype_check_for_fused = True


def _fusible_groups(optimizers: list[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    for optimizer in optimizers:
        inner = getattr(optimizer, "_optimizer", None) or getattr(optimizer, "optimizer", optimizer)
        for group in inner.param_groups:
            if "fused" in group:
                yield inner, group


def _micro_batch(trainer: Any, loader: Any, value: int) -> Any:
    old = getattr(loader, "batch_size", None)
    changed = loader_changes.rebuild(loader, batch_size=value)
    if old and not trainer.__dict__.get("_effprof_accumulates"):
        samples = old * trainer.accumulate_grad_batches
        if samples % value:
            raise Refused(f"the batch of {samples} samples per step is no multiple of {value}")
        trainer.accumulate_grad_batches = math.ceil(samples / value)
    return changed


def _loader_argument(argument: str) -> Apply:
    def apply(trainer: Any, loader: Any, value: Any) -> Any:
        return loader_changes.rebuild(loader, **{argument: value})

    return apply


def _persistent_workers(trainer: Any, loader: Any, value: bool) -> Any:
    # without workers there is nothing to keep alive
    return loader_changes.rebuild(loader, persistent_workers=value) if loader.num_workers else loader


def _trim_padding(trainer: Any, loader: Any, value: bool) -> Any:
    if not value:
        return loader
    loader_changes.check_trimmable(loader)
    return loader_changes.with_trimmed_padding(loader)


def _length_grouping(trainer: Any, loader: Any, value: bool) -> Any:
    if not value:
        return loader
    shares = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return loader_changes.with_length_grouping(loader, int(shares.get("num_replicas", 1)), int(shares.get("rank", 0)))


EARLY: dict[str, Apply] = {
    "precision": _precision,
    "matmul_precision": _matmul_precision,
    "accumulate": _accumulate,
    "gradient_checkpointing": _gradient_checkpointing,
    "sdpa_backend": _sdpa_backend,
    "attn_implementation": _through_models("set_attn_implementation"),
    "experts_implementation": _through_models("set_experts_implementation"),
    "channels_last": _channels_last,
    "compile": _compile,
    "log_every_n_steps": _log_every,
    "gc_every_n_steps": _collect_garbage_every,
    "disable_callbacks": _without_callbacks,
    "detect_anomaly": _detect_anomaly,
    "deterministic": _deterministic,
    "cudnn_benchmark": _cudnn_benchmark,
    "threads": _threads,
    "find_unused_parameters": _ddp("find_unused_parameters"),
    "bucket_cap_mb": _ddp("bucket_cap_mb"),
    "environment": _environment,
}
OPTIMIZERS: dict[str, Apply] = {"fused_optimizer": _fused_optimizer}
# (trainer, loader, value) → loader
LOADER: dict[str, Callable[[Any, Any, Any], Any]] = {
    "micro_batch": _micro_batch,
    "num_workers": _loader_argument("num_workers"),
    "pin_memory": _loader_argument("pin_memory"),
    "prefetch_factor": _loader_argument("prefetch_factor"),
    "persistent_workers": _persistent_workers,
    "length_grouping": _length_grouping,
    "trim_padding": _trim_padding,
}
