"""Facts of how a module is spread over ranks, from the wrappers around it and its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from effprof.measure.facts.read import dtype_name, read_facts

if TYPE_CHECKING:
    import torch

_MIB = 1 << 20


def parallel_facts(module: torch.nn.Module | None) -> dict[str, Any]:
    """Settings of DistributedDataParallel, FSDP or FSDP2 around or inside the module, and the process group's."""
    facts = read_facts({"backend": _backend}, None)
    if module is None:
        return facts
    for kind, find, readers in _KINDS:
        found = find(module)
        if found:
            return facts | {"kind": kind} | read_facts(readers, found)
    return facts


def _backend(_: Any) -> str | None:
    import torch.distributed as distributed

    return str(distributed.get_backend()) if distributed.is_available() and distributed.is_initialized() else None


def _ddp(module: torch.nn.Module) -> list[Any]:
    from torch.nn.parallel import DistributedDataParallel

    return [part for part in module.modules() if isinstance(part, DistributedDataParallel)]


def _fsdp(module: torch.nn.Module) -> list[Any]:
    return [part for part in module.modules() if type(part).__name__ == "FullyShardedDataParallel"]


def _fsdp2(module: torch.nn.Module) -> list[Any]:
    """The parameter groups of `fully_shard`, one a unit."""
    found: list[Any] = []
    for part in module.modules():
        if any(base.__name__ == "FSDPModule" for base in type(part).__mro__):
            state = part._get_fsdp_state()  # type: ignore[operator]
            groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
            found += [group for group in groups if group is not None]
    return found


def _comm_hook(wrappers: list[Any]) -> str:
    hooks = getattr(wrappers[0], "_comm_hooks", None)
    return str(getattr(hooks[0][0], "__name__", type(hooks[0][0]).__name__)) if hooks else "none"


def _reshards(groups: list[Any]) -> bool:
    return 2 * sum(group.post_forward_mesh_info is not None for group in groups) > len(groups)


def _name_of(value: Any) -> str:
    return "none" if value is None else str(getattr(value, "name", value))


def _optional_dtype(value: Any) -> str | None:
    return None if value is None else dtype_name(value)


def _offloads(groups: list[Any]) -> bool:
    return type(groups[0].offload_policy).__name__ == "CPUOffloadPolicy"


_DDP: dict[str, Callable[[Any], Any]] = {
    "find_unused_parameters": lambda found: bool(found[0].find_unused_parameters),
    "static_graph": lambda found: bool(found[0].static_graph),
    "gradient_as_bucket_view": lambda found: bool(found[0].gradient_as_bucket_view),
    "bucket_cap_mb": lambda found: found[0].bucket_bytes_cap / _MIB,
    "broadcast_buffers": lambda found: bool(found[0].broadcast_buffers),
    "comm_hook": _comm_hook,
}
_FSDP: dict[str, Callable[[Any], Any]] = {
    "units": len,
    "sharding": lambda found: _name_of(found[0].sharding_strategy),
    "reshard_after_forward": lambda found: _name_of(found[0].sharding_strategy) in ("FULL_SHARD", "HYBRID_SHARD"),
    "cpu_offload": lambda found: bool(found[0].cpu_offload.offload_params),
    "forward_prefetch": lambda found: bool(found[0].forward_prefetch),
    "backward_prefetch": lambda found: _name_of(found[0].backward_prefetch),
    "limit_all_gathers": lambda found: bool(found[0].limit_all_gathers),
    "reduce_dtype": lambda found: _optional_dtype(found[0].mixed_precision.reduce_dtype),
    "parameter_dtype": lambda found: _optional_dtype(found[0].mixed_precision.param_dtype),
}
_FSDP2: dict[str, Callable[[Any], Any]] = {
    "units": len,
    "sharding": lambda found: "HYBRID_SHARD" if type(found[0].mesh_info).__name__ == "HSDPMeshInfo" else "FULL_SHARD",
    "reshard_after_forward": _reshards,
    "cpu_offload": _offloads,
    "reduce_dtype": lambda found: _optional_dtype(found[0].mp_policy.reduce_dtype),
    "parameter_dtype": lambda found: _optional_dtype(found[0].mp_policy.param_dtype),
    "replicas": lambda found: (
        found[0].mesh_info.replicate_mesh_size if hasattr(found[0].mesh_info, "replicate_mesh_size") else None
    ),
}
_KINDS = (("ddp", _ddp, _DDP), ("fsdp", _fsdp, _FSDP), ("fsdp2", _fsdp2, _FSDP2))
