"""Expert load read from real, tiny transformers models, against the experts that their layers really run."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from effprof.errors import EffprofError
from effprof.measure.experts import ExpertLoad
from effprof.measure.routers import find_routers, plain_path
from effprof.runlog.schema import Event, Experts

torch.set_num_threads(1)

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=5),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **SIZES, num_experts=6, moe_intermediate_size=8, shared_expert_intermediate_size=8
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, num_experts=6, moe_intermediate_size=8, head_dim=8),
    "deepseek_v3": lambda: DeepseekV3Config(
        **SIZES,
        n_routed_experts=8,
        moe_intermediate_size=8,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
    "olmoe": lambda: OlmoeConfig(**SIZES, num_experts=7),
    "gpt_oss": lambda: GptOssConfig(**SIZES, num_local_experts=4, head_dim=8),
}
ROUTED_LAYERS = {"deepseek_v3": 2}


def make_model(name: str) -> nn.Module:
    torch.manual_seed(7)
    model: nn.Module = AutoModelForCausalLM.from_config(CONFIGS[name]())
    for part in model.modules():
        if hasattr(part, "e_score_correction_bias"):
            # a bias that decides: logits alone would name other experts
            nn.init.normal_(part.e_score_correction_bias, std=0.5)
    # tokens that look alike would all go the same way
    nn.init.normal_(model.get_input_embeddings().weight)
    return model.train()


def make_batch(rows: int = 3, columns: int = 11) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 64, (rows, columns), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def step(model: nn.Module, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer | None = None) -> None:
    loss = model(**batch).loss
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def run_experts(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """Tokens that each expert is given in a forward, taken where the experts are called."""
    given: list[list[int]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        indices = next(value for value in inputs[1:] if not value.is_floating_point())
        given.append([int((indices == expert).sum()) for expert in range(module.num_experts)])

    handles = [
        part.register_forward_pre_hook(note) for path, part in model.named_modules() if path.endswith(".experts")
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return given


def sampled(load: ExpertLoad) -> list[Experts]:
    lines = load.poll()
    assert not [line for line in lines if isinstance(line, Event)]
    return [line for line in lines if isinstance(line, Experts)]


def count_hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in model.modules())


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_the_tokens_that_the_experts_are_given(name: str) -> None:
    model, batch = make_model(name), make_batch()
    load = ExpertLoad(model, every_n_steps=10)
    layers = ROUTED_LAYERS.get(name, 3)
    assert len(load.routers) == layers
    expected = run_experts(model, batch)
    assert len(expected) == layers
    load.on_step_end(1)
    step(model, batch)
    load.on_step_end(2)
    [line] = sampled(load)
    assert line.step == 2
    assert line.layers == [f"model.layers.{index + 3 - layers}.mlp" for index in range(layers)]
    assert line.tokens_per_expert == expected
    assert [sum(tokens) for tokens in line.tokens_per_expert] == [3 * 11 * 2] * layers  # padding is routed too
    assert len({tuple(tokens) for tokens in line.tokens_per_expert}) > 1
    assert line.dropped == [None] * layers


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3", "olmoe"])
def test_training_is_bit_identical(name: str) -> None:
    def train(measured: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
        model = make_model(name)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        load = ExpertLoad(model, every_n_steps=2) if measured else None
        torch.manual_seed(1)
        for number in range(1, 6):
            batch = make_batch(columns=8 + number)
            batch["input_ids"] = functional.dropout(batch["input_ids"].float(), 0.2).long() % 64
            step(model, batch, optimizer)
            if load is not None:
                load.on_step_end(number)
        if load is not None:
            assert [line.step for line in sampled(load)] == [2, 4]
            load.close()
            assert count_hooks(model) == 0
        return [parameter.detach().clone() for parameter in model.parameters()], torch.get_rng_state()

    (with_load, state), (without, other_state) = train(True), train(False)
    assert all(torch.equal(a, b) for a, b in zip(with_load, without, strict=True))
    assert torch.equal(state, other_state)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_is_not_counted_again(reentrant: bool) -> None:
    model, batch = make_model("mixtral"), make_batch()
    expected = run_experts(model, batch)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    load = ExpertLoad(model)
    load.on_step_end(1)
    step(model, batch)
    load.on_step_end(2)
    [line] = sampled(load)
    assert line.tokens_per_expert == expected


def test_one_micro_batch_of_a_sampled_step_and_no_evaluation() -> None:
    model, batch, other = make_model("olmoe"), make_batch(), make_batch(columns=5)
    expected = run_experts(model, batch)
    load = ExpertLoad(model)
    load.on_step_end(1)
    model.eval()
    with torch.no_grad():
        model(**other)
    model.train()
    step(model, batch)
    step(model, other)
    load.on_step_end(2)
    [line] = sampled(load)
    assert line.tokens_per_expert == expected


def test_samples_every_n_steps_and_has_no_hooks_in_between() -> None:
    model, batch = make_model("mixtral"), make_batch(1, 4)
    load = ExpertLoad(model, every_n_steps=4)
    hooks = []
    for number in range(1, 13):
        step(model, batch)
        load.on_step_end(number)
        hooks.append(count_hooks(model))
    assert hooks == [3, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0]
    assert [line.step for line in sampled(load)] == [2, 4, 8, 12]


def test_resumed_training_samples_its_second_step() -> None:
    model = make_model("mixtral")
    load = ExpertLoad(model, every_n_steps=50)
    load.on_step_end(1001)
    step(model, make_batch(1, 4))
    load.on_step_end(1002)
    assert [line.step for line in sampled(load)] == [1002]


class OldBlock(nn.Module):
    """The pattern of transformers 4: a linear gate that returns logits, a list of experts."""

    def __init__(self, top_k: int = 2) -> None:
        super().__init__()
        self.num_experts, self.top_k = 4, top_k
        self.gate = nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.shared_expert_gate = nn.Linear(8, 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.reshape(-1, 8)
        weights = functional.softmax(self.gate(hidden), dim=1, dtype=torch.float)
        weights, chosen = torch.topk(weights, self.top_k, dim=-1)
        self.chosen = chosen
        return sum(weights[:, k, None] * hidden for k in range(self.top_k))  # type: ignore[return-value]


class OldDeepseekBlock(OldBlock):
    """transformers 5.0: the gate returns logits, the block routes them through groups and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.register_buffer("e_score_correction_bias", torch.tensor([3.0, 0.0, 0.0, 3.0]))

    def route_tokens_to_experts(self, router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = router_logits.sigmoid_() + self.gate.e_score_correction_bias
        chosen = torch.topk(scores, k=2, dim=-1, sorted=False)[1]
        return chosen, scores.gather(1, chosen)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.chosen, weights = self.route_tokens_to_experts(self.gate(hidden.reshape(-1, 8)))
        return hidden.reshape(-1, 8) * weights.sum(1, keepdim=True)


@pytest.mark.parametrize("kind", [OldBlock, OldDeepseekBlock])
def test_routers_that_return_logits(kind: type[OldBlock]) -> None:
    model = nn.Sequential(kind(), kind())
    load = ExpertLoad(model)
    load.on_step_end(1)
    model(torch.randn(2, 9, 8)).sum().backward()
    load.on_step_end(2)
    [line] = sampled(load)
    assert line.layers == ["0", "1"]
    assert line.tokens_per_expert == [
        torch.bincount(block.chosen.flatten(), minlength=4).tolist()
        for block in model  # type: ignore[attr-defined]
    ]


def test_capacity_and_dropped_tokens() -> None:
    torch.manual_seed(0)
    config = SwitchTransformersConfig(
        vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2, num_experts=4,
        expert_capacity=3, num_sparse_encoder_layers=1, num_sparse_decoder_layers=0, decoder_start_token_id=0,
    )  # fmt: skip
    model = SwitchTransformersForConditionalGeneration(config).train()
    load = ExpertLoad(model)
    assert load.routers
    load.on_step_end(1)
    ids = torch.randint(1, 64, (2, 10))
    model(input_ids=ids, labels=ids[:, :4].clone()).loss.backward()
    load.on_step_end(2)
    [line] = sampled(load)
    for name, tokens, lost in zip(line.layers, line.tokens_per_expert, line.dropped, strict=True):
        assert max(tokens) <= 2 * 3  # a capacity of 3 in each row
        assert lost is not None
        assert sum(tokens) + lost == (20 if name.startswith("encoder") else 8)
    assert sum(lost or 0 for lost in line.dropped) > 0


class Mine(nn.Module):
    """A block that looks like nothing effprof knows."""

    def __init__(self) -> None:
        super().__init__()
        self.switch = nn.Linear(8, 5)
        self.paths = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.switch(hidden)
        self.chosen = logits.topk(3, dim=-1).indices
        return hidden * logits.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    "reader",
    ["logits:3", lambda module, inputs, output: output.topk(3, dim=-1).indices],
)
def test_routers_that_the_user_names(reader: Any) -> None:
    model = nn.ModuleDict({"a": Mine(), "b": Mine()})
    assert find_routers(model) == []
    load = ExpertLoad(model, routers={"*.switch": reader})
    load.on_step_end(1)
    for block in model.values():
        block(torch.randn(4, 6, 8)).sum().backward()
    load.on_step_end(2)
    [line] = sampled(load)
    assert line.layers == ["a.switch", "b.switch"]
    assert line.tokens_per_expert == [
        torch.bincount(block.chosen.flatten(), minlength=5).tolist() for block in model.values()
    ]


def test_indices_of_an_unknown_number_of_experts() -> None:
    class Chooser(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0, 2], [2, -1], [5, 0]])

    model = nn.Sequential(Chooser())
    load = ExpertLoad(model, routers={"0": "indices"})
    load.on_step_end(1)
    model(torch.zeros(1))
    load.on_step_end(2)
    [line] = sampled(load)
    assert (line.tokens_per_expert, line.dropped) == ([[2, 0, 2, 0, 0, 1]], [1])


@pytest.mark.parametrize("named", [{"*.nothing": "logits:2"}, {"0.switch": "logits"}, {"0.switch": "logits:0"}])
def test_names_that_mean_nothing_are_refused(named: dict[str, Any]) -> None:
    with pytest.raises(EffprofError, match="routers="):
        ExpertLoad(nn.Sequential(Mine()), routers=named)


class LooksLikeOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 8)  # a gated unit: no experts beside it
        self.router = nn.Linear(8, 8)


class DenseMixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)  # weighs all experts, chooses none
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))


def test_what_only_looks_like_a_router_is_left_alone() -> None:
    model = nn.Sequential(LooksLikeOne(), DenseMixture(), nn.Linear(8, 8))
    load = ExpertLoad(model)
    assert load.routers == []
    load.on_step_end(1)
    assert count_hooks(model) == 0
    assert load.poll() == []
    load.close()


def test_a_reader_that_fails_warns_once_and_training_goes_on() -> None:
    def fail(module: nn.Module, inputs: Any, output: Any) -> torch.Tensor:
        raise KeyError("no such thing")

    model = nn.Sequential(Mine(), OldBlock())
    load = ExpertLoad(model, every_n_steps=1, routers={"0.switch": fail})
    for number in range(1, 8):
        model(torch.randn(2, 3, 8)).sum().backward()
        load.on_step_end(number)
    lines = load.poll()
    [event] = [line for line in lines if isinstance(line, Event)]
    assert "no such thing" in event.message
    assert "routers=" in event.message
    assert {tuple(line.layers) for line in lines if isinstance(line, Experts)} == {("1",)}


def test_copies_and_pickles_of_a_sampled_model_carry_no_sampler() -> None:
    model = nn.Sequential(OldBlock())
    load = ExpertLoad(model)
    load.on_step_end(1)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(torch.randn(1, 3, 8))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    load.on_step_end(2)
    assert sampled(load) == []


def test_compiled_routers_are_left_alone_and_said_to_be_unseen() -> None:
    """Attaching hooks must neither recompile a model nor break its graph, and their silence must be explained."""
    model = nn.Sequential(OldBlock())
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        compilations.append(len(list(graph.graph.nodes)))
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    load = ExpertLoad(compiled, every_n_steps=1)
    assert [router.name for router in load.routers] == ["0"]
    for number in range(1, 10):
        compiled(torch.randn(2, 3, 8)).sum().backward()
        load.on_step_end(number)
    assert len(compilations) == 1
    lines = load.poll()
    assert [type(line) for line in lines] == [Event]
    assert "torch.compile" in lines[0].message  # type: ignore[union-attr]


def test_hooks_that_are_there_while_compiling_break_no_graph() -> None:
    model = nn.Sequential(OldBlock())
    load = ExpertLoad(model, every_n_steps=1)
    load.on_step_end(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        compiled(torch.randn(2, 3, 8)).sum().backward()
    load.on_step_end(2)
    assert sampled(load) == []


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("_orig_mod.model.layers.0.mlp", "model.layers.0.mlp"),
        ("model._fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.mlp", "model.layers.0.mlp"),
        ("model.layers.0._orig_mod", "model.layers.0"),
        ("my_orig_mod.gate", "my_orig_mod.gate"),
    ],
)
def test_paths_are_plain(path: str, plain: str) -> None:
    assert plain_path(path) == plain
