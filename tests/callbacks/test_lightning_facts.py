"""What is read off a Trainer: above all the data-parallel share, which a job's tokens are summed by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from effprof.callbacks.lightning_facts import placement_of
from effprof.measure.placement import placement_from_environment


class Mesh:
    """A device mesh as the strategy asks it: sizes and this rank's place by dimension name. A real one needs a job."""

    def __init__(self, sizes: dict[str, int], places: dict[str, int]) -> None:
        self.sizes, self.places = sizes, places

    def __getitem__(self, name: str) -> Any:
        return SimpleNamespace(size=lambda: self.sizes[name], get_local_rank=lambda: self.places[name])


def trainer_with(strategy: Any, rank: int, world_size: int) -> Any:
    strategy.cluster_environment = environment = LightningEnvironment()
    environment.set_global_rank(rank)
    environment.set_world_size(world_size)
    return SimpleNamespace(
        strategy=strategy,
        global_rank=rank,
        local_rank=rank % 4,
        node_rank=rank // 4,
        num_nodes=2,
        world_size=world_size,
    )


@pytest.mark.parametrize("make", [DDPStrategy, FSDPStrategy])
def test_replicating_and_sharding_strategies_are_data_parallel_throughout(make: Any) -> None:
    strategy = make(parallel_devices=[torch.device("cpu")] * 4)
    strategy.num_nodes = 2
    found = placement_of(trainer_with(strategy, rank=5, world_size=8))
    assert (found.data_parallel_rank, found.data_parallel_size) == (5, 8)
    assert (found.node, found.local_rank, found.nodes) == (1, 1, 2)


def test_tensor_parallel_ranks_share_a_batch() -> None:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=4)
    strategy._device_mesh = Mesh({"data_parallel": 2, "tensor_parallel": 4}, {"data_parallel": 1, "tensor_parallel": 3})
    found = placement_of(trainer_with(strategy, rank=7, world_size=8))
    assert (found.data_parallel_rank, found.data_parallel_size) == (1, 2)
    assert found.world_size == 8


def test_a_single_device_is_all_there_is() -> None:
    strategy = SingleDeviceStrategy(device=torch.device("cpu"))
    trainer = SimpleNamespace(strategy=strategy, global_rank=0, local_rank=0, node_rank=0, num_nodes=1, world_size=1)
    assert (placement_of(trainer).data_parallel_rank, placement_of(trainer).data_parallel_size) == (0, 1)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 0, 0, 1, 1)),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"},
            (5, 1, 1, 2, 8),
        ),
        (
            {
                "SLURM_PROCID": "3",
                "SLURM_NTASKS": "4",
                "SLURM_LOCALID": "1",
                "SLURM_NODEID": "1",
                "SLURM_NTASKS_PER_NODE": "2",
            },
            (3, 1, 1, 2, 4),
        ),
        # a shell in an allocation is one process, whatever was allocated
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, (0, 0, 0, 1, 1)),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            (1, 1, 0, 1, 2),
        ),
    ],
)
def test_launchers_tell_a_process_where_it_stands(environment: dict[str, str], expected: tuple[int, ...]) -> None:
    found = placement_from_environment(environment)
    assert (found.rank, found.local_rank, found.node, found.nodes, found.world_size) == expected
