"""Three figures for one micro-batch's memory: closed form, rehearsal on a fake copy, and what was really live."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from effprof.errors import EffprofError
from effprof.workload.counter import CountFailed
from effprof.workload.memory import MemoryForecast, Plan, predict_memory, state_forecast
from effprof.workload.memory_fake import rehearse_memory
from effprof.workload.memory_live import LiveMemory, LiveTensors
from effprof.workload.memory_shapes import shapes_from_config

transformers = pytest.importorskip("transformers")
BATCH, LENGTH = 3, 40
GROUPED = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**GROUPED, "original_max_position_embeddings": 64}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 500, "n_positions": 64, "loss_type": "ForCausalLM"},
    ),
    "vit": (
        "ViTConfig",
        "ViTForImageClassification",
        {
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 4,
        },
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, precision: str = "32-true", attention: str = "sdpa") -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A tiny model in training, its batch and its config as plain values."""
    config_class, model_class, values = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**values)
    config._attn_implementation = attention
    model = getattr(transformers, model_class)(config)
    if precision == "bf16-true":
        model = model.bfloat16()
    model.train()
    if name == "vit":
        pixels = torch.randn(BATCH, 3, 32, 32).to(next(model.parameters()).dtype)
        batch = {"pixel_values": pixels, "labels": torch.zeros(BATCH, dtype=torch.long)}
    else:
        ids = torch.randint(3, 500, (BATCH, LENGTH))
        batch = {"input_ids": ids, "labels": ids}
    return model, batch, {**config.to_dict(), "architectures": [model_class]}


def context_of(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else contextlib.nullcontext()


def run_live(model: Any, batch: dict[str, Any], precision: str) -> LiveMemory:
    """One real micro-batch under the tracker."""
    live = LiveTensors(model.parameters())
    live.know([*model.parameters(), *model.buffers(), *batch.values()])
    with live:
        with context_of(precision):
            loss = model(**batch).loss
        loss.backward()
    return live.result()


CASES = [
    *((name, precision, "sdpa", False) for name in MODELS for precision in ("32-true", "bf16-mixed", "bf16-true")),
    ("llama", "32-true", "eager", False),
    ("llama", "bf16-mixed", "eager", False),
    ("gpt2", "bf16-mixed", "eager", False),
    ("llama", "bf16-mixed", "sdpa", True),
    ("qwen3", "32-true", "sdpa", True),
]


@pytest.mark.parametrize(("name", "precision", "attention", "is_recomputed"), CASES)
def test_three_figures_agree(name: str, precision: str, attention: str, is_recomputed: bool) -> None:
    model, batch, config = make(name, precision, attention)
    if is_recomputed:
        model.gradient_checkpointing_enable()
    rehearsed = rehearse_memory(model, batch, context=lambda: context_of(precision)).live
    live = run_live(model, batch, precision)
    # the offsets of the grouped product, some bytes per layer, are all that the rehearsal leaves out
    assert rehearsed.kept_bytes == pytest.approx(live.kept_bytes, rel=1e-4)
    assert rehearsed.peak_bytes == pytest.approx(live.peak_bytes, rel=1e-4)
    assert rehearsed.gradients_bytes == live.gradients_bytes
    forecast = forecast_of(config, precision, attention, is_recomputed)
    assert forecast.gradients_bytes == live.gradients_bytes
    assert forecast.activations_bytes == pytest.approx(live.kept_bytes, rel=0.01)
    beside = forecast.peak_bytes - forecast.parameters_bytes - forecast.optimizer_bytes
    assert beside == pytest.approx(live.peak_bytes, rel=0.05)


def forecast_of(config: dict[str, Any], precision: str, attention: str, is_recomputed: bool) -> Any:
    plan = Plan(
        BATCH,
        LENGTH,
        precision=precision,
        attention=attention,
        recompute="full" if is_recomputed else "none",
        device_type="cpu",
    )
    return predict_memory(config, plan)


def test_the_rehearsal_leaves_the_live_module_alone() -> None:
    model, batch, _ = make("llama")
    implementation, state = model.config._attn_implementation, torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rehearse_memory(model, batch)
    assert model.config._attn_implementation == implementation
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_that_wait_on_the_live_module_do_not_count() -> None:
    model, batch, _ = make("llama")
    first = rehearse_memory(model, batch).live
    run_live(model, batch, "32-true")
    assert rehearse_memory(model, batch).live == first


def test_frozen_parameters_keep_less_and_make_no_gradients() -> None:
    model, batch, _ = make("llama")
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    rehearsed, live = rehearse_memory(model, batch).live, run_live(model, batch, "32-true")
    assert (rehearsed.kept_bytes, rehearsed.peak_bytes) == (live.kept_bytes, live.peak_bytes)
    assert rehearsed.largest == live.largest
    assert live.gradients_bytes == model.lm_head.weight.numel() * 4


def test_a_convolutional_net_is_rehearsed_to_the_byte() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
            self.head = nn.Linear(8 * 8 * 8, 10)

        def forward(self, images: torch.Tensor, labels: torch.Tensor) -> Any:
            return nn.functional.cross_entropy(self.head(self.body(images).flatten(1)), labels)

    model, batch = Net(), {"images": torch.randn(4, 3, 16, 16), "labels": torch.zeros(4, dtype=torch.long)}
    rehearsed = rehearse_memory(model, batch).live
    live = LiveTensors(model.parameters())
    live.know([*model.parameters(), *model.buffers(), *batch.values()])
    with live:
        model(**batch).backward()
    result = live.result()
    assert rehearsed.kept_bytes == result.kept_bytes
    assert rehearsed.peak_bytes == pytest.approx(result.peak_bytes, rel=0.02)


def test_a_step_that_needs_values_says_so() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, data: torch.Tensor) -> torch.Tensor:
            return (self.weight * data[data > 0]).sum()

    with pytest.raises(CountFailed, match=r"depends on the data|fake tensors"):
        rehearse_memory(Sorted(), torch.randn(2, 4))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # ZeRO, section 3.1: 2 + 2 + K bytes per parameter with K = 12 is fp16 with fp32 copies; here as torch holds it
        ({}, (4, 4, 8)),
        ({"precision": "bf16-true"}, (2, 2, 4)),
        ({"precision": "bf16-mixed"}, (4, 4, 8)),
        ({"optimizer": "sgd"}, (4, 4, 0)),
        ({"optimizer": "momentum"}, (4, 4, 4)),
        ({"optimizer": "adamw8bit"}, (4, 4, 2)),
        ({"shards": 8, "zero_stage": 1}, (4, 4, 1)),
        ({"shards": 8, "zero_stage": 2}, (4, 0.5, 1)),
        ({"shards": 8, "zero_stage": 3}, (0.5, 0.5, 1)),
    ],
)
def test_states_after_the_plan(settings: dict[str, Any], expected: tuple[float, float, float]) -> None:
    states = state_forecast(8_000_000, 8_000_000, Plan(1, **settings))
    assert (states.parameters_bytes, states.gradients_bytes, states.optimizer_bytes) == tuple(
        8_000_000 * each for each in expected
    )


def llama_8b(**settings: Any) -> MemoryForecast:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    return predict_memory(config, Plan(1, 8192, precision="bf16-true", **settings))


def test_levers_move_the_forecast_the_way_they_move_a_training() -> None:
    plain, full = llama_8b(), llama_8b(recompute="full")
    assert plain.activations_bytes > 5 * full.activations_bytes
    assert full.parts["layers"] == 32 * 8192 * 4096 * 2  # one input per layer
    eager, selective = llama_8b(attention="eager"), llama_8b(attention="eager", recompute="selective")
    # the scores alone: softmax in fp32 and its bf16 copy, heads x length squared per layer
    assert eager.activations_bytes - selective.activations_bytes == 32 * 32 * 8192**2 * 6
    assert llama_8b(accumulates=True).peak_bytes == plain.peak_bytes + plain.gradients_bytes
    sharded = llama_8b(shards=8, zero_stage=3)
    assert sharded.peak_bytes < plain.peak_bytes
    assert llama_8b(has_gradient_buckets=True).peak_bytes > plain.peak_bytes


def test_a_family_without_activations_still_has_its_states() -> None:
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 32}
    config |= {"type_vocab_size": 2}
    forecast = predict_memory(config, Plan(1, 32))
    assert forecast.parameters_bytes > 0
    assert forecast.activations_bytes is None
    assert forecast.peak_bytes is None
    assert "bert" in forecast.reason


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(EffprofError, match="optimizer 'sophia'"):
        Plan(1, optimizer="sophia")
    with pytest.raises(EffprofError, match="micro_batch"):
        Plan(0)
    with pytest.raises(EffprofError, match="bert"):
        shapes_from_config({"model_type": "bert"})
