"""The one call at the first batch: what it takes for the model, and what it says when it cannot."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from effprof.workload.detect import detect
from effprof.workload.flops import pairs_of

transformers = pytest.importorskip("transformers", reason="detects transformers' own models")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

B, T, VOCABULARY = 2, 24, 128
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def llama(**changes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **changes}))


def ids(rows: int = B, columns: int = T) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (rows, columns))


def text(rows: int = B, columns: int = T) -> dict[str, torch.Tensor]:
    tokens = ids(rows, columns)
    return {"input_ids": tokens, "labels": tokens}


def counters(rows: int, columns: int, window: int | None = None) -> dict[str, float]:
    """Counters of an unpadded causal batch, written out here on purpose."""
    return {
        "samples": rows,
        "tokens": rows * columns,
        "pairs": rows * columns * (columns + 1) // 2,
        "window_pairs": rows * pairs_of(columns, causal=True, window=window),
        "square_pairs": rows * columns**2,
    }


class Lit(nn.Module):
    """A module in the shape of a LightningModule: the model inside, a loss outside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if isinstance(batch, dict):
            return self.model(**batch).loss  # type: ignore[no-any-return]
        inputs, labels = batch
        logits = self.model(input_ids=inputs).logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class Plain(nn.Module):
    """A transformer without a config."""

    def __init__(self, layers: int = 2, width: int = 32, heads: int = 4, *, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Linear(width, 3 * width),
                    nn.Linear(width, width),
                    nn.Linear(width, 4 * width),
                    nn.Linear(4 * width, width),
                ]
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for qkv, out, up, down in self.layers:  # type: ignore[misc]
            q, k, v = qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            x = x + out(attended.transpose(1, 2).flatten(2))
            x = x + down(F.gelu(up(x)))
        return self.head(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, labels = batch
        return F.cross_entropy(self(inputs).flatten(0, 1), labels.flatten())


PLAIN_MATRICES = 2 * 12 * 32 * 32 + 32 * VOCABULARY


@pytest.mark.parametrize("batch", [text(), (ids(), ids())], ids=["dict", "tuple"])
def test_a_module_that_wraps_a_transformers_model(batch: Any) -> None:
    model, facts = detect(Lit(llama()), batch)
    assert model is not None
    assert (facts.source, facts.agrees) == ("closed_form", True)
    assert facts.counts["closed_form"] == pytest.approx(facts.counts["operation_count"])
    assert model.evaluate(counters(B, T)) == pytest.approx(facts.counts["operation_count"])
    assert (facts.causal, facts.window, facts.coverage, facts.by_dtype) == (True, None, 1.0, {"fp32": 1.0})
    assert facts.model["name"] == "LlamaForCausalLM"
    assert facts.model["pad_token_id"] == 0


def test_a_transformers_model_itself_and_its_window() -> None:
    config = transformers.MistralConfig(**SIZES, sliding_window=8)
    model, facts = detect(transformers.MistralForCausalLM(config), text())
    assert model is not None
    assert (facts.source, facts.window, facts.causal) == ("closed_form", 8, True)
    assert model.evaluate(counters(B, T, 8)) == pytest.approx(facts.counts["operation_count"])


def test_padding_does_not_change_the_coefficients() -> None:
    mask = torch.ones(B, T, dtype=torch.long)
    mask[:, -5:] = 0
    full, _ = detect(llama(), text())
    padded, facts = detect(llama(), {**text(), "attention_mask": mask})
    packed, _ = detect(llama(), {**text(), "position_ids": torch.arange(T).remainder(7).expand(B, T)})
    assert full is not None
    assert padded is not None
    assert facts.agrees
    assert padded.conventions == full.conventions
    assert packed is not None
    assert packed.conventions == full.conventions


def test_a_plain_transformer_gets_per_token_and_per_pair_figures() -> None:
    model, facts = detect(Plain(), (ids(), ids()))
    assert model is not None
    assert facts.source == "operation_count"
    assert model.conventions["exact"] == {"tokens": 6 * PLAIN_MATRICES, "pairs": 12 * 2 * 32}
    assert model.conventions["megatron"] == {"tokens": 6 * PLAIN_MATRICES, "square_pairs": 6 * 2 * 32}
    assert model.conventions["palm"] == {"tokens": 6 * PLAIN_MATRICES, "square_pairs": 12 * 2 * 32}
    assert model.conventions["6n"] == {"tokens": 6 * sum(each.numel() for each in Plain().parameters())}
    assert facts.causal is True
    # the figures hold for another shape
    again, longer = detect(Plain(), (ids(3, 50), ids(3, 50)))
    assert again is not None
    assert model.evaluate(counters(3, 50)) == pytest.approx(longer.counts["operation_count"])


def test_a_plain_bidirectional_transformer() -> None:
    model, facts = detect(Plain(causal=False), (ids(), ids()))
    assert model is not None
    assert facts.causal is False
    assert model.conventions["exact"]["pairs"] == 12 * 2 * 32
    assert model.conventions["megatron"] == model.conventions["palm"]


def test_a_single_tensor_whose_last_position_is_only_a_label() -> None:
    class Shifted(Plain):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return super().training_step((batch[:, :-1], batch[:, 1:]), batch_idx)

    model, facts = detect(Shifted(), ids(B, T + 1))
    assert model is not None
    assert set(model.conventions["exact"]) == {"tokens", "pairs"}
    assert model.evaluate(counters(B, T + 1)) == pytest.approx(facts.counts["operation_count"])


def test_images_cost_per_sample() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
            )

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return F.cross_entropy(self.body(batch[0]), batch[1])

    model, facts = detect(Net(), (torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)))
    assert model is not None
    assert facts.source == "operation_count"
    assert model.conventions["exact"] == {"samples": 2 * 2 * 256 * 8 * 27 + 3 * 2 * 8 * 10}
    assert model.evaluate({"samples": 4}) == facts.counts["operation_count"]
    assert facts.causal is None


def test_vision_transformer() -> None:
    sizes = {
        key: SIZES[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))
    batch = {"pixel_values": torch.randn(B, 3, 32, 32), "labels": torch.zeros(B, dtype=torch.long)}
    model, facts = detect(vit, batch)
    assert model is not None
    assert (facts.source, facts.agrees, facts.causal) == ("closed_form", True, False)
    assert set(model.conventions["exact"]) == {"samples"}


def test_encoder_decoder() -> None:
    config = transformers.T5Config(
        d_model=64,
        d_ff=160,
        d_kv=16,
        num_layers=2,
        num_heads=4,
        vocab_size=128,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    model, facts = detect(transformers.T5ForConditionalGeneration(config), {"input_ids": ids(), "labels": ids(B, 10)})
    assert model is not None
    assert (facts.source, facts.agrees) == ("closed_form", True)
    assert facts.model["is_encoder_decoder"] is True
    assert set(model.conventions["exact"]) == {"source_tokens", "target_tokens", "pairs", "source_pairs", "cross_pairs"}


@pytest.mark.parametrize(
    "kind", ["MixtralForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM", "DeepseekV3ForCausalLM"]
)
def test_experts_count_as_often_as_they_are_chosen(kind: str) -> None:
    options: dict[str, Any] = {"num_experts_per_tok": 2}
    if kind.startswith("Deepseek"):
        options |= {"n_routed_experts": 8, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4, "q_lora_rank": 16}
        options |= {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
        options |= {"moe_intermediate_size": 32, "first_k_dense_replace": 1}
    elif kind.startswith("Mixtral"):
        options |= {"num_local_experts": 8}
    else:
        options |= {"num_experts": 8, "moe_intermediate_size": 32} if kind.startswith("Qwen") else {"num_experts": 8}
    config = getattr(transformers, kind.replace("ForCausalLM", "Config"))(**{**SIZES, **options})
    model, facts = detect(Lit(getattr(transformers, kind)(config)), (ids(), ids()))
    assert model is not None
    assert (facts.source, facts.agrees) == ("closed_form", True)
    assert facts.model["experts"] == [2, 8]
    assert facts.model["parameters_active"] < sum(
        each.numel() for each in getattr(transformers, kind)(config).parameters()
    )


def test_gradient_checkpointing_is_no_model_flops() -> None:
    model = llama()
    model.gradient_checkpointing_enable()
    model.train()
    _, facts = detect(Lit(model), text())
    assert facts.agrees
    head = 2 * 64 * VOCABULARY * B * T
    # checkpointing stops once all that is kept has been rebuilt, before the last product of each layer
    last = 3 * 2 * 160 * 64 * B * T
    again = facts.counts["operation_count"] / 3 - head - last
    assert facts.recompute_share == pytest.approx(again / facts.counts["operation_count"], rel=1e-3)


def test_frozen_layers() -> None:
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    for layer in model.model.layers[:2]:
        layer.requires_grad_(False)
    linear, facts = detect(Lit(model), text())
    assert linear is not None
    assert facts.source == "operation_count"
    assert "frozen" in facts.reason
    layer_matrices = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160
    forward_only, trained = 2 * layer_matrices, layer_matrices + 64 * VOCABULARY
    # the first trained layer's norm starts the graph, so every product above it counts three times
    assert linear.conventions["exact"]["tokens"] == pytest.approx(2 * forward_only + 6 * trained, rel=1e-3)
    assert linear.conventions["exact"]["pairs"] == 4 * 64 * (2 + 3)
    again, longer = detect(Lit(model), text(1, 60))
    assert again is not None
    assert linear.evaluate(counters(1, 60)) == pytest.approx(longer.counts["operation_count"], rel=1e-3)


def test_lora_computes_no_gradient_of_frozen_weights() -> None:
    peft = pytest.importorskip("peft")
    base = llama()
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))
    linear, facts = detect(Lit(adapted), text())
    assert linear is not None
    assert facts.source == "operation_count"
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160
    adapter = 4 * (64 + 64) + 4 * (64 + 32)
    # frozen matrices: forward and input gradient; adapters: all three; the first layer's input needs no gradient
    first = 64 * 64 + 2 * 64 * 32 + 2 * 4 * 64
    expected = 4 * (3 * layer + 64 * VOCABULARY) + 6 * 3 * adapter - 2 * first
    assert linear.conventions["exact"]["tokens"] == pytest.approx(expected, rel=2e-3)
    assert facts.counts["difference"] < -0.2


def test_autocast() -> None:
    _, facts = detect(Lit(llama()), text(), context=lambda: torch.autocast("cpu", torch.bfloat16))
    assert facts.by_dtype["bf16"] > 0.99
    assert sum(facts.by_dtype.values()) == pytest.approx(1.0)


def test_a_head_outside_the_model_is_seen_and_explained() -> None:
    class WithHead(Lit):
        def __init__(self) -> None:
            super().__init__(llama())
            self.extra = nn.Linear(VOCABULARY, 512)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.extra(self.model(input_ids=batch[0]).logits).sum()  # type: ignore[no-any-return]

    model, facts = detect(WithHead(), (ids(), ids()))
    assert model is not None
    assert (facts.source, facts.agrees) == ("operation_count", False)
    assert "operation count: it sees +" in facts.reason
    assert model.evaluate(counters(B, T)) == pytest.approx(facts.counts["operation_count"])


class Custom(Plain):
    """Has a dependency on data that fake tensors cannot answer."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out = super().forward(tokens)
        return out[tokens > 5]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch[0]).sum()


def test_what_cannot_be_counted_names_the_arguments_that_help() -> None:
    model, facts = detect(Custom(), (ids(), ids()))
    assert model is None
    assert facts.source is None
    assert "depends on the data" in facts.reason
    assert "flops_per_step=" in facts.reason
    assert "model_config=" in facts.reason


def test_a_given_config_stands_in(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**transformers.LlamaConfig(**SIZES).to_dict(), "architectures": ["LlamaForCausalLM"]}))
    for given in (str(path), transformers.LlamaConfig(**SIZES), transformers.LlamaConfig(**SIZES).to_dict()):
        model, facts = detect(Custom(), (ids(), ids()), config=given)
        assert model is not None
        assert facts.source == "closed_form"
        assert "depends on the data" in facts.reason
    _, broken = detect(Custom(), (ids(), ids()), config=str(tmp_path / "no.json"))
    assert "no such file" in broken.reason


def test_a_module_that_cannot_be_copied_is_counted_all_the_same() -> None:
    class Locked(Lit):
        def __init__(self) -> None:
            super().__init__(Plain())
            self.lock = threading.Lock()
            self.log_file = open("/dev/null")  # noqa: SIM115

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            with self.lock:
                return self.model.training_step(batch, batch_idx)  # type: ignore[operator, no-any-return]

    model, facts = detect(Locked(), (ids(), ids()))
    assert model is not None
    assert facts.source == "operation_count"


def test_an_unknown_family_falls_back_to_operations() -> None:
    config = transformers.StableLmConfig(**SIZES)
    model, facts = detect(transformers.StableLmForCausalLM(config), text())
    assert model is not None
    assert facts.source == "operation_count"
    assert set(model.conventions["exact"]) == {"tokens", "pairs"}


def test_compiled_modules_are_not_run_compiled() -> None:
    model = Plain()
    model.layers[0][0].compile(backend="eager")  # type: ignore[index]
    compiled = torch.compile(model, backend="eager")
    linear, _ = detect(compiled, (ids(), ids()))  # type: ignore[arg-type]
    expected, _ = detect(Plain(), (ids(), ids()))
    assert linear is not None
    assert expected is not None
    assert linear.conventions == expected.conventions


def test_a_module_without_matrices_says_so() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return (self.weight * batch).sum()

    model, facts = detect(Empty(), torch.ones(2, 3))
    assert model is None
    assert "no matrix product" in facts.reason
