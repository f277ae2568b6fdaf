"""Facts read off a training's own objects: each against objects set up with a known answer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from effprof.measure.facts.environment import environment_facts
from effprof.measure.facts.gather import loop_facts
from effprof.measure.facts.loader import loader_facts
from effprof.measure.facts.model import model_facts
from effprof.measure.facts.numerics import autocast_dtype, cpu_units, numerics_facts
from effprof.measure.facts.optimizer import optimizer_facts, state_facts
from effprof.measure.facts.parallel import parallel_facts
from effprof.measure.facts.read import read_facts
from effprof.runlog.settings import GROUPS, names, render

ROOT = Path(__file__).parents[4]


class Stream(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(8))


class ByLength(torch.utils.data.Sampler[list[int]]):
    def __iter__(self) -> Any:
        return iter([[0, 1], [2, 3]])


def join(samples: list[Any], pad: int) -> list[Any]:
    return samples


def test_a_fact_that_fails_or_is_no_plain_value_is_left_out() -> None:
    class Awkward:
        good = 1
        nothing = None
        infinite = float("inf")

        @property
        def mixed(self) -> dict[str, Any]:
            return {"kept": 1.5, "dropped": object(), "absent": None}

        @property
        def bad(self) -> int:
            raise RuntimeError("not now")

    readers = {name: (lambda subject, name=name: getattr(subject, name)) for name in vars(Awkward) if name[0] != "_"}
    facts = read_facts(readers, Awkward())
    assert facts == {"good": 1, "mixed": {"kept": 1.5}}


def test_loader_settings() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(10))
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=3,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        prefetch_factor=4,
        collate_fn=partial(join, pad=0),
    )
    facts = loader_facts(loader)
    assert facts == {
        "num_workers": 2,
        "pin_memory": False,
        "persistent_workers": False,
        "prefetch_factor": 4,
        "micro_batch": 3,
        "drop_last": True,
        "shuffle": True,
        "sampler": "RandomSampler",
        "collate": "join",
        "dataset": "TensorDataset",
        "dataset_kind": "map",
        "dataset_samples": 10,
        "loader": "DataLoader",
    }


def test_a_stream_has_neither_length_nor_order_and_an_own_batch_sampler_is_named() -> None:
    stream = loader_facts(torch.utils.data.DataLoader(Stream(), batch_size=2))
    assert stream["dataset_kind"] == "iterable"
    assert not stream.keys() & {"dataset_samples", "shuffle", "prefetch_factor"}
    grouped = loader_facts(torch.utils.data.DataLoader(list(range(4)), batch_sampler=ByLength()))
    assert grouped["sampler"] == "ByLength"
    assert "shuffle" not in grouped
    assert loader_facts(torch.utils.data.DataLoader([1, 2]))["shuffle"] is False
    assert loader_facts([torch.zeros(2)]) == {"loader": "list"}


def test_optimizer_settings_and_states() -> None:
    model = nn.Linear(4, 4)
    adam = torch.optim.AdamW(
        [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2, "weight_decay": 0.0}],
        fused=True,
        weight_decay=0.3,
    )
    facts = optimizer_facts([None, adam])
    assert facts["optimizers"] == ["AdamW"]
    assert facts["optimizer_modules"] == ["torch"]
    assert facts["optimizer_fused"] is True
    assert facts["optimizer_can_fuse"] is True
    assert "optimizer_foreach" not in facts
    assert facts["optimizer_groups"] == 2
    assert facts["optimizer_learning_rates"] == [0.1, 0.2]
    assert facts["weight_decay"] == 0.3
    assert state_facts([adam]) == {}
    model(torch.ones(2, 4)).sum().backward()
    adam.step()
    assert state_facts([adam]) == {"optimizer_bits": 32, "optimizer_state_dtypes": {"fp32": 1.0}}
    assert optimizer_facts([None]) == {}


def test_low_precision_optimizers_are_told_by_class_and_tensors() -> None:
    class PagedAdamW8bit(torch.optim.SGD):
        pass

    model = nn.Linear(4, 4).bfloat16()
    paged = PagedAdamW8bit(model.parameters(), lr=0.1, momentum=0.9)
    assert optimizer_facts([paged])["optimizer_paged"] is True
    assert optimizer_facts([paged])["momentum"] == 0.9
    model(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    paged.step()
    assert state_facts([paged])["optimizer_bits"] == 8
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plain.step()
    assert state_facts([plain]) == {"optimizer_bits": 16, "optimizer_state_dtypes": {"bf16": 1.0}}


def test_sizes_and_memory_format() -> None:
    model = nn.Sequential(nn.Embedding(100, 24), nn.Linear(24, 48), nn.Linear(48, 100), nn.Dropout(0.25))
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    facts = model_facts(model)
    assert facts["frozen_share"] == pytest.approx(2400 / (2400 + 24 * 48 + 48 + 4800 + 100))
    assert (facts["vocab_size"], facts["vocab_multiple"], facts["linear_multiple"]) == (100, 4, 4)
    assert facts["unaligned_linear_share"] == pytest.approx(4800 / (4800 + 24 * 48))
    assert facts["dropout"] == 0.25
    assert not facts.keys() & {"convolutions", "channels_last", "attn_implementation", "experts_implementation"}
    images: nn.Module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    assert model_facts(images)["channels_last"] is False
    facts = model_facts(images.to(memory_format=torch.channels_last))
    assert facts["channels_last"] is True
    assert facts["convolutions"] == 2
    assert facts["norms"] == {"BatchNorm2d": 1}


def test_recompute_of_wrapped_layers() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    assert "gradient_checkpointing" not in model_facts(model)
    model.layers[1] = checkpoint_wrapper(model.layers[1])
    facts = model_facts(model)
    assert facts["layers"] == 4
    assert facts["gradient_checkpointing"] is True
    assert facts["gradient_checkpointing_share"] == 0.25
    assert facts["gradient_checkpointing_policy"] == "full"
    model.layers[1] = checkpoint_wrapper(nn.Linear(8, 8), context_fn=lambda: None)
    assert model_facts(model)["gradient_checkpointing_policy"] == "selective"


def test_a_transformers_model() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, vocab_size=96,
        tie_word_embeddings=True, use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    facts = model_facts(model)
    assert facts["attn_implementation"] == "eager"
    assert facts["use_cache"] is False
    assert facts["gradient_checkpointing"] is False
    assert facts["gradient_checkpointing_share"] == 0.0
    assert facts["ties_embeddings"] is True
    assert facts["has_checkpointing_switch"] is True
    assert (facts["hidden_size"], facts["layers"], facts["vocab_multiple"]) == (32, 3, 32)
    assert facts["norms"] == {"LlamaRMSNorm": 7}
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": True})
    facts = model_facts(model)
    assert facts["gradient_checkpointing_share"] == 1.0
    assert facts["gradient_checkpointing_reentrant"] is True
    assert facts["gradient_checkpointing_policy"] == "full"


@pytest.mark.parametrize(
    ("options", "mode"),
    [({}, "default"), ({"mode": "reduce-overhead"}, "reduce-overhead"), ({"mode": "max-autotune"}, "max-autotune")],
)
def test_compilation_is_seen_outside_and_in_place(options: dict[str, Any], mode: str) -> None:
    assert model_facts(nn.Linear(2, 2))["is_compiled"] is False
    around = model_facts(torch.compile(nn.Linear(2, 2), **options))
    assert around["is_compiled"] is True
    assert around["compile_mode"] == mode
    inside = nn.Sequential(nn.Linear(2, 2))
    inside[0].compile(**options)
    assert model_facts(inside)["is_compiled"] is True
    assert model_facts(inside)["compile_mode"] == mode


def test_numerics() -> None:
    mixed = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 1, bias=False).bfloat16())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        facts = numerics_facts(mixed, "cpu")
    finally:
        torch.set_float32_matmul_precision(before)
    assert facts["matmul_precision"] == "medium"
    assert facts["parameter_dtypes"] == {"fp32": 0.75, "bf16": 0.25}
    assert "math" in facts["sdpa_backends"]
    assert "allow_tf32" not in facts
    assert autocast_dtype(lambda: torch.autocast("cpu", torch.bfloat16), "cpu") == "bf16"
    assert autocast_dtype(None, "cpu") == "none"


def test_instruction_sets_of_a_processor() -> None:
    intel = "processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 avx512_bf16 amx_int8\nprocessor\t: 1\nflags\t\t: sve\n"
    assert cpu_units(intel) == ["amx_bf16", "amx_int8", "avx512_bf16"]
    assert cpu_units("Features\t: fp asimd bf16 i8mm sve\n") == ["bf16", "i8mm", "sve"]
    assert cpu_units("") == []


def test_only_named_variables_are_recorded() -> None:
    found = environment_facts({"NCCL_DEBUG": "INFO", "AWS_SECRET_ACCESS_KEY": "x", "OMP_NUM_THREADS": "4"})
    assert found["environment"] == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4"}


@pytest.fixture
def group(tmp_path: Path) -> Any:
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_wrappers_of_data_parallel_training(group: None) -> None:
    model = nn.Linear(4, 4)
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True, bucket_cap_mb=7)
    facts = parallel_facts(wrapped)
    assert facts["kind"] == "ddp"
    assert facts["backend"] == "gloo"
    assert facts["find_unused_parameters"] is True
    assert facts["static_graph"] is False
    assert facts["bucket_cap_mb"] == 7
    assert facts["comm_hook"] == "none"
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    wrapped.register_comm_hook(None, fp16_compress_hook)
    assert parallel_facts(wrapped)["comm_hook"] == "fp16_compress_hook"


def test_units_of_fully_sharded_training(group: None) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model:
        fully_shard(layer, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    facts = parallel_facts(model)
    assert facts["kind"] == "fsdp2"
    assert facts["units"] == 2
    assert facts["reshard_after_forward"] is False
    assert facts["cpu_offload"] is False
    assert (facts["parameter_dtype"], facts["reduce_dtype"]) == ("bf16", "fp32")


def test_a_model_on_one_device_has_no_layout() -> None:
    assert parallel_facts(nn.Linear(2, 2)) == {} == parallel_facts(None)


def test_the_vocabulary_has_every_fact_and_the_document_is_current() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    facts = loop_facts(model, [optimizer], torch.utils.data.DataLoader([1]), "cpu")
    assert facts.keys() <= names("config")
    assert json.loads(json.dumps(facts)) == facts
    assert len({(each.mapping, setting.name) for each in GROUPS for setting in each.settings}) == sum(
        len(each.settings) for each in GROUPS
    )
    assert (ROOT / "docs" / "facts.md").read_text() == render(), "run python -m effprof.runlog.settings > docs/facts.md"
