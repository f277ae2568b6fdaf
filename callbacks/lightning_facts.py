"""What a Lightning Trainer says of itself: its ranks, its strategy, its settings."""

from __future__ import annotations

from typing import Any

from effprof.hardware.ceiling import fp32_products_run_in
from effprof.measure.placement import Placement


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
    """The settings that decide speed and memory, as plain values; what is not known is left out."""
    import torch

    settings: dict[str, Any] = {
        "precision": str(trainer.precision),
        "accumulate": trainer.accumulate_grad_batches,
        "strategy": type(trainer.strategy).__name__,
        "accelerator": type(trainer.accelerator).__name__,
        "gradient_clip_val": trainer.gradient_clip_val,
        "optimizers": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "fp32_products_run_in": fp32_products_run_in(trainer.strategy.root_device.type),
        "threads": torch.get_num_threads(),
        "is_compiled": any(type(module).__name__ == "OptimizedModule" for module in pl_module.modules())
        or getattr(pl_module, "_compiler_ctx", None) is not None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "log_every_n_steps": trainer.log_every_n_steps,
    }
    settings.update(_loader_settings(trainer))
    return {name: value for name, value in settings.items() if value is not None}


def _loader_settings(trainer: Any) -> dict[str, Any]:
    loader = trainer.train_dataloader
    names = {"batch_size": "micro_batch", "num_workers": "num_workers", "pin_memory": "pin_memory"}
    return {name: getattr(loader, attribute, None) for attribute, name in names.items()}
