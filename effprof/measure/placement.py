"""Which process of the job this is, found without a collective."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from effprof.runlog.layout import INTERACTIVE_JOBS


@dataclass(frozen=True)
class Placement:
    """This process among the job's.

    Attributes:
        data_parallel_rank, data_parallel_size: its share of the batch; ranks with the same one see the same batch.
    """

    rank: int = 0
    local_rank: int = 0
    node: int = 0
    nodes: int = 1
    world_size: int = 1
    data_parallel_rank: int = 0
    data_parallel_size: int = 1


def placement_from_environment(environment: Mapping[str, str] | None = None) -> Placement:
    """What torchrun, Slurm and Open MPI tell a process, taking every rank to be data parallel."""
    env = os.environ if environment is None else environment

    def number(default: int, *names: str) -> int:
        return next((int(env[name]) for name in names if env.get(name, "").isdigit()), default)

    rank = number(0, "RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    world_size = number(1, "WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    if "RANK" not in env and env.get("SLURM_JOB_NAME") in INTERACTIVE_JOBS:
        rank, world_size = 0, 1  # a shell inside an allocation: its task count is not this program's
    local_size = max(1, number(world_size, "LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE"))
    return Placement(
        rank=rank,
        local_rank=number(0, "LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK") if world_size > 1 else 0,
        node=number(rank // local_size, "GROUP_RANK", "SLURM_NODEID"),
        nodes=max(1, -(-world_size // local_size)),
        world_size=world_size,
        data_parallel_rank=rank,
        data_parallel_size=world_size,
    )
