"""What is read off a Trainer: above all the data-parallel share, which a job's tokens are summed by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities import rank_zero_only

from effprof.callbacks import EfficiencyCallback
from effprof.callbacks.lightning_facts import layout, placement_of
from effprof.measure.placement import placement_from_environment
from effprof.runlog.reader import open_run
from effprof.runlog.settings import names
from tests.support.tiny_lightning import Tiny, token_loader, trainer


class Mesh:
    """A device mesh as the strategy asks it: sizes and this rank's place by dimension name. A real one needs a job."""

    def __init__(self, sizes: dict[str, int], places: dict[str, int]) -> None:
        self.sizes, self.places = sizes, places

    def __getitem__(self, name: str) -> Any:
        return SimpleNamespace(size=lambda: self.sizes[name], get_local_rank=lambda: self.places[name])


def trainer_with(strategy: Any, rank: int, world_size: int) -> Any:
    strategy.cluster_environment = environment = LightningEnvironment()
    own = rank_zero_only.rank
    environment.set_global_rank(rank)
    rank_zero_only.rank = own  # of this whole process: what it turns off would stay off in later tests
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


class Scripted(Tiny):
    """Returns a loss that is known beforehand."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        return loss * 0 + self.global_step + index % 2


def test_a_fit_records_its_settings_and_what_it_saw(tmp_path: Path) -> None:
    path = tmp_path / "run"
    checkpoint = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, save_top_k=-1)
    fit = trainer(
        tmp_path,
        [EfficiencyCallback(run_dir=path, telemetry=False, peak_tflops=0.1), checkpoint],
        max_steps=6,
        accumulate_grad_batches=2,
        precision="bf16-mixed",
        enable_checkpointing=True,
        gradient_clip_val=0.5,
        val_check_interval=4,
        limit_val_batches=1,
    )
    fit.fit(Scripted(), token_loader(12), token_loader(2))
    run = open_run(str(path))
    config, parallel = run.record.config, run.record.parallel
    assert config.keys() <= names("config")
    assert parallel.keys() <= names("parallel")
    assert run.record.hardware.keys() <= names("hardware")
    expected = {
        "precision": "bf16-mixed",
        "autocast_dtype": "bf16",
        "precision_plugin": "MixedPrecision",
        "accumulate": 2,
        "gradient_clip_val": 0.5,
        "val_check_interval": 4,
        "val_batches": 1,
        "train_batches": 12,
        "micro_batch": 4,
        "optimizers": ["AdamW"],
        "optimizer_fused": None,
        "optimizer_state_dtypes": {"fp32": 1.0},
        "async_checkpoint": False,
        "profiler": "none",
        "detect_anomaly": False,
        "automatic_optimization": True,
        "losses_recorded": 6,
        "input_shapes": 1,
    }
    assert {name: config.get(name) for name in expected} == expected
    assert config["checkpoints"][0]["every_n_train_steps"] == 3
    assert config["callbacks"] == ["ModelCheckpoint"]
    assert (parallel["kind"], parallel["nodes"], parallel["devices_per_node"]) == ("single", 1, 1)
    # two micro-batches of each step: their own step's number, one of them + 1, and Lightning's mean over both
    assert run.attempts[0].ranks[0].columns["loss"].tolist() == [step + 0.5 for step in range(6)]
    assert run.attempts[0].ranks[0].columns["gc_ns"].min() >= 0


def test_layout_of_model_parallel_and_deepspeed_strategies() -> None:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=4)
    strategy._device_mesh = SimpleNamespace(mesh_dim_names=("data_parallel", "tensor_parallel"), mesh=torch.zeros(2, 4))
    found = layout(SimpleNamespace(strategy=strategy, num_nodes=1, num_devices=8))
    assert (found["tensor"], found["mesh"]) == (4, {"data_parallel": 2, "tensor_parallel": 4})
    assert (found["strategy"], found["devices_per_node"]) == ("ModelParallelStrategy", 8)
    assert "zero_stage" not in found
    # DeepSpeed itself is not needed to read the mapping that its strategy keeps
    deepspeed = SimpleNamespace(config={"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}})
    found = layout(SimpleNamespace(strategy=deepspeed, num_nodes=2, num_devices=8))
    assert (found["zero_stage"], found["offload_optimizer"], found["offload_parameters"]) == (3, "cpu", "none")
