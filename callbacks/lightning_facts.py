"""What a Lightning Trainer says of itself: its ranks, its strategy, its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from effprof.measure.facts.gather import loop_facts
from effprof.measure.facts.numerics import autocast_dtype
from effprof.measure.facts.parallel import parallel_facts
from effprof.measure.facts.read import attribute, class_name, read_facts
from effprof.measure.placement import Placement

# Modules of the precision plugins whose contexts may be entered beside a step: others count amax or move weights.
_PLAIN_CONTEXTS = ("precision", "amp", "half", "double", "fsdp", "deepspeed")


def framework_of(trainer: Any) -> tuple[str, str]:
    """Name and version of the Lightning package that the Trainer comes from."""
    package = "lightning.pytorch" if type(trainer).__module__.startswith("lightning.") else "pytorch_lightning"
    version = getattr(__import__(package.partition(".")[0]), "__version__", "")
    return package, str(version)


def placement_of(trainer: Any) -> Placement:
    """Where this process stands. Data-parallel ranks are those whose samplers would differ."""
    # every parallel strategy says how it would shard a sampler: model-parallel ones by their data-parallel mesh
    shares = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return Placement(
        rank=trainer.global_rank,
        local_rank=trainer.local_rank,
        node=trainer.node_rank,
        nodes=trainer.num_nodes,
        world_size=trainer.world_size,
        data_parallel_rank=int(shares.get("rank", trainer.global_rank)),
        data_parallel_size=int(shares.get("num_replicas", trainer.world_size)),
    )


def configuration(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """The settings that decide speed and memory, by their names in `effprof.runlog.settings`."""
    device = trainer.strategy.root_device
    facts = loop_facts(pl_module, trainer.optimizers, _train_loader(trainer), device.type, device.index or 0)
    return facts | read_facts(_TRAINER, trainer)


def layout(trainer: Any) -> dict[str, Any]:
    """How the job is spread over ranks: the strategy's own settings and the wrappers' that it put around the model."""
    wrapped = getattr(trainer.strategy, "model", None)
    return parallel_facts(wrapped) | read_facts(_STRATEGY, trainer)


def scale_of(trainer: Any) -> Callable[[], Any] | None:
    """What gives the fp16 gradient scaler's scale, a tensor or None; None where nothing is scaled."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else lambda: getattr(scaler, "_scale", None)


def _train_loader(trainer: Any) -> Any:
    """The training loader; of several the first."""
    combined = getattr(trainer.fit_loop, "_combined_loader", None)
    loaders = getattr(combined, "flattened", None) or [trainer.train_dataloader]
    return loaders[0]


def _autocast_dtype(trainer: Any) -> str | None:
    plugin = trainer.precision_plugin
    if type(plugin).__module__.rpartition(".")[2] not in _PLAIN_CONTEXTS:
        return None
    return autocast_dtype(plugin.forward_context, trainer.strategy.root_device.type)


def _checkpoints(trainer: Any) -> list[dict[str, Any]]:
    return [read_facts(_CHECKPOINT, callback) for callback in trainer.checkpoint_callbacks]


def _interval_s(callback: Any) -> float | None:
    interval = callback._train_time_interval
    return None if interval is None else float(interval.total_seconds())


def _callbacks(trainer: Any) -> list[str]:
    return [type(each).__name__ for each in trainer.callbacks if not type(each).__module__.startswith("effprof.")]


def _checkpoint_io(trainer: Any) -> Any:
    return trainer.strategy.checkpoint_io


def _is_async(trainer: Any) -> bool:
    plugin = _checkpoint_io(trainer)
    return "Async" in type(plugin).__name__ or any(
        "Async" in type(each).__name__ for each in trainer.checkpoint_callbacks
    )


def _profiler(trainer: Any) -> str:
    name = type(trainer.profiler).__name__
    return "none" if name == "PassThroughProfiler" else name


def _batches(name: str) -> Any:
    def read(trainer: Any) -> int | None:
        count = getattr(trainer, name)
        count = sum(count) if isinstance(count, list) else count
        return int(count) if count != float("inf") else None

    return read


def _progress_bar(trainer: Any) -> str:
    return class_name(trainer.progress_bar_callback) or "none"


def _offload(name: str) -> Any:
    def read(trainer: Any) -> str:
        settings = trainer.strategy.config["zero_optimization"].get(name) or {}
        return str(settings.get("device", "none"))

    return read


def _mesh(trainer: Any) -> dict[str, int] | None:
    mesh = getattr(trainer.strategy, "device_mesh", None)
    return None if mesh is None else dict(zip(mesh.mesh_dim_names, mesh.mesh.shape, strict=True))


def _axis(*names: str) -> Any:
    def read(trainer: Any) -> int | None:
        mesh = _mesh(trainer) or {}
        return next((int(mesh[name]) for name in names if name in mesh), None)

    return read


def _kind(trainer: Any) -> str | None:
    name = type(trainer.strategy).__name__
    return "single" if name.startswith("SingleDevice") else "deepspeed" if name.startswith("DeepSpeed") else None


_TRAINER: dict[str, Any] = {
    "precision": lambda trainer: str(trainer.precision),
    "precision_plugin": lambda trainer: class_name(trainer.precision_plugin),
    "autocast_dtype": _autocast_dtype,
    "accelerator": lambda trainer: class_name(trainer.accelerator),
    "strategy": lambda trainer: class_name(trainer.strategy),
    "accumulate": attribute("accumulate_grad_batches"),
    "gradient_clip_val": attribute("gradient_clip_val"),
    "gradient_clip_algorithm": attribute("gradient_clip_algorithm"),
    "automatic_optimization": lambda trainer: bool(trainer.lightning_module.automatic_optimization),
    "max_steps": attribute("max_steps"),
    "max_epochs": attribute("max_epochs"),
    "train_batches": _batches("num_training_batches"),
    "val_batches": _batches("num_val_batches"),
    "val_check_interval": attribute("val_check_interval"),
    "check_val_every_n_epoch": attribute("check_val_every_n_epoch"),
    "limit_train_batches": attribute("limit_train_batches"),
    "limit_val_batches": attribute("limit_val_batches"),
    "num_sanity_val_steps": _batches("num_sanity_val_steps"),
    "log_every_n_steps": attribute("log_every_n_steps"),
    "loggers": lambda trainer: [type(logger).__name__ for logger in trainer.loggers],
    "callbacks": _callbacks,
    "checkpoints": _checkpoints,
    "async_checkpoint": _is_async,
    "checkpoint_io": lambda trainer: class_name(_checkpoint_io(trainer)),
    "progress_bar": _progress_bar,
    "progress_bar_refresh": lambda trainer: trainer.progress_bar_callback.refresh_rate,
    "detect_anomaly": attribute("_detect_anomaly"),
    "profiler": _profiler,
    "sync_batchnorm": lambda trainer: trainer._accelerator_connector.sync_batchnorm,
    "use_distributed_sampler": lambda trainer: trainer._accelerator_connector.use_distributed_sampler,
    "reload_dataloaders_every_n_epochs": attribute("reload_dataloaders_every_n_epochs"),
    "barebones": attribute("barebones"),
}
_CHECKPOINT: dict[str, Any] = {
    "class": class_name,
    "every_n_train_steps": attribute("_every_n_train_steps"),
    "every_n_epochs": attribute("_every_n_epochs"),
    "interval_s": _interval_s,
    "save_top_k": attribute("save_top_k"),
    "save_last": attribute("save_last"),
    "save_weights_only": attribute("save_weights_only"),
    "monitor": attribute("monitor"),
}
_STRATEGY: dict[str, Any] = {
    "strategy": lambda trainer: class_name(trainer.strategy),
    "kind": _kind,
    "nodes": attribute("num_nodes"),
    "devices_per_node": attribute("num_devices"),
    "mesh": _mesh,
    "tensor": _axis("tensor_parallel", "tp"),
    "pipeline": _axis("pipeline_parallel", "pp"),
    "context": _axis("context_parallel", "cp"),
    "expert": _axis("expert_parallel", "ep"),
    "zero_stage": lambda trainer: int(trainer.strategy.config["zero_optimization"]["stage"]),
    "offload_optimizer": _offload("offload_optimizer"),
    "offload_parameters": _offload("offload_param"),
    "overlap_comm": lambda trainer: bool(trainer.strategy.config["zero_optimization"]["overlap_comm"]),
}
