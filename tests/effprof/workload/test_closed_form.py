"""Closed form against real transformers models with random weights: parameters to the last one, FLOPs to 0.1 %."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from effprof.workload.architecture import from_hf_config
from effprof.workload.flops import counts_for, flops_model
from effprof.workload.operations import count_training_step

transformers = pytest.importorskip("transformers", reason="compares with transformers' own models")
transformers.logging.set_verbosity_error()
logging.getLogger("transformers").setLevel(logging.ERROR)

SAMPLES, LENGTH, TARGET = 2, 40, 24
BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
BERT: dict[str, Any] = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
ALL_HEADS = {**BASE, "num_key_value_heads": 4}
LATENT: dict[str, Any] = {
    **ALL_HEADS,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
}
V3 = {**LATENT, "n_group": 2, "topk_group": 1, "q_lora_rank": 24}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 256}
T5 = {"d_model": 64, "d_ff": 160, "d_kv": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 128, "pad_token_id": 0}
T5 = {**T5, "decoder_start_token_id": 0}
VIT = {**BERT, "image_size": 32, "patch_size": 8}
for _key in ("vocab_size", "max_position_embeddings", "pad_token_id"):
    VIT.pop(_key)
SMALL = {"num_hidden_layers": 2, "vocab_size": 128, "hidden_size": 64, "num_attention_heads": 4, "pad_token_id": 0}

# id: (config class, model class, arguments)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", BASE),
    "llama-biases": ("LlamaConfig", "LlamaForCausalLM", {**BASE, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {**BASE, "tie_word_embeddings": True, "head_dim": 32}),
    "llama-bare": ("LlamaConfig", "LlamaModel", BASE),
    "llama-classifier": ("LlamaConfig", "LlamaForSequenceClassification", {**BASE, "num_labels": 5}),
    "mistral-window": ("MistralConfig", "MistralForCausalLM", {**BASE, "sliding_window": 16}),
    "mistral-no-window": ("MistralConfig", "MistralForCausalLM", {**BASE, "sliding_window": None}),
    "mistral-long-window": ("MistralConfig", "MistralForCausalLM", {**BASE, "sliding_window": 4096}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", BASE),
    "qwen2-unused-window": ("Qwen2Config", "Qwen2ForCausalLM", {**BASE, "sliding_window": 8}),
    "qwen2-upper-window": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {**BASE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**BASE, "head_dim": 32}),
    "qwen3-bias": ("Qwen3Config", "Qwen3ForCausalLM", {**BASE, "head_dim": 32, "attention_bias": True}),
    "qwen3-layer-types": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {
            **BASE,
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**BASE, "head_dim": 32}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**BASE, "head_dim": 32, "sliding_window": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**BASE, "head_dim": 32, "sliding_window": 16, "sliding_window_pattern": 3},
    ),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**BASE, "num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 8},
    ),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**BASE, **EXPERTS, "shared_expert_intermediate_size": 96, "decoder_sparse_step": 2},
    ),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**BASE, **EXPERTS, "head_dim": 32}),
    "qwen3-moe-dense-layers": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**BASE, **EXPERTS, "head_dim": 32, "mlp_only_layers": [1]},
    ),
    "deepseek-v2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {**LATENT, "q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 1},
    ),
    "deepseek-v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {**V3, "first_k_dense_replace": 1}),
    "deepseek-v3-no-query-rank": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {**V3, "q_lora_rank": None, "first_k_dense_replace": 2, "n_shared_experts": 2, "attention_bias": True},
    ),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", BASE),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", BASE),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", {**BASE, "num_experts": 8, "num_experts_per_tok": 2}),
    "phi": ("PhiConfig", "PhiForCausalLM", BASE),
    "phi-norms": ("PhiConfig", "PhiForCausalLM", {**BASE, "qk_layernorm": True}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**BASE, "sliding_window": 16}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "gpt2-inner": ("GPT2Config", "GPT2LMHeadModel", {**GPT2, "n_inner": 96, "tie_word_embeddings": False}),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", BERT),
    "opt": ("OPTConfig", "OPTForCausalLM", {**SMALL, "ffn_dim": 160, "max_position_embeddings": 256}),
    "opt-narrow": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            **SMALL,
            "ffn_dim": 160,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 32,
            "do_layer_norm_before": False,
        },
    ),
    "bert": ("BertConfig", "BertForMaskedLM", BERT),
    "bert-classifier": ("BertConfig", "BertForSequenceClassification", {**BERT, "num_labels": 3}),
    "bert-tags": ("BertConfig", "BertForTokenClassification", {**BERT, "num_labels": 7}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", BERT),
    "roberta-classifier": ("RobertaConfig", "RobertaForSequenceClassification", BERT),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 160, "vocab_size": 128, "max_position_embeddings": 256},
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
    "t5-gated": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 3},
    ),
    "vit": ("ViTConfig", "ViTForImageClassification", VIT),
    "vit-wide": (
        "ViTConfig",
        "ViTForImageClassification",
        {**VIT, "image_size": [32, 48], "num_channels": 1, "qkv_bias": False, "num_labels": 10},
    ),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", {**BASE, "sliding_window": 8, "num_hidden_layers": 4}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {**BASE, "attention_bias": True}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", BASE),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {**BASE, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    # attention written in products
    "gpt-neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 4,
            "vocab_size": 128,
            "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
        },
    ),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}),
    "falcon": ("FalconConfig", "FalconForCausalLM", SMALL),
    "falcon-new": (
        "FalconConfig",
        "FalconForCausalLM",
        {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "ffn_hidden_size": 100},
    ),
    "falcon-old": ("FalconConfig", "FalconForCausalLM", {**SMALL, "parallel_attn": False, "multi_query": False}),
}


def make(case: tuple[str, str, dict[str, Any]]) -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    """The model of a case with random weights, a batch, and its config as a config.json would hold it."""
    config_class, model_class, arguments = case
    config = getattr(transformers, config_class)(**arguments)
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    values = {**config.to_dict(), "architectures": [model_class], "num_labels": config.num_labels}
    ids = torch.randint(3, 128, (SAMPLES, LENGTH))
    if model_class.startswith("ViT"):
        height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
        batch = {"pixel_values": torch.randn(SAMPLES, config.num_channels, height, width)}
        return model, {**batch, "labels": torch.zeros(SAMPLES, dtype=torch.long)}, values
    if model_class.endswith("SequenceClassification"):
        return model, {"input_ids": ids, "labels": torch.zeros(SAMPLES, dtype=torch.long)}, values
    if model_class.endswith("TokenClassification"):
        return model, {"input_ids": ids, "labels": torch.zeros_like(ids)}, values
    if model_class.startswith("T5"):
        return model, {"input_ids": ids, "labels": torch.randint(3, 128, (SAMPLES, TARGET))}, values
    if model_class.endswith("Model") and not model_class.endswith("LMHeadModel"):
        return model, {"input_ids": ids}, values
    return model, {"input_ids": ids, "labels": ids}, values


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_exact(name: str) -> None:
    model, _, values = make(CASES[name])
    assert from_hf_config(values).parameters_total == model.num_parameters()


@pytest.mark.parametrize("name", CASES)
def test_operations_agree_with_the_closed_form(name: str) -> None:
    torch.set_num_threads(1)
    model, batch, values = make(CASES[name])
    architecture = from_hf_config(values)
    closed = flops_model(architecture).evaluate(counts_for(architecture, SAMPLES, LENGTH, TARGET))
    counted = count_training_step(model, batch)
    assert counted.uncounted == ()
    assert counted.flops == pytest.approx(closed, rel=1e-3)
    pairs = sum(
        flops * counts_for(architecture, SAMPLES, LENGTH, TARGET)[counter]
        for counter, flops in flops_model(architecture).conventions["exact"].items()
        if counter.endswith("pairs")
    )
    if architecture.positions_per_sample is None:
        assert counted.attention_flops == pytest.approx(pairs, rel=1e-9)


def test_a_longer_sequence_follows_from_the_same_coefficients() -> None:
    model, _, values = make(CASES["gemma2"])
    architecture = from_hf_config(values)
    ids = torch.randint(3, 128, (1, 100))
    counted = count_training_step(model, {"input_ids": ids, "labels": ids})
    assert counted.flops == pytest.approx(
        flops_model(architecture).evaluate(counts_for(architecture, 1, 100)), rel=1e-3
    )


def test_active_parameters_leave_out_idle_experts_only() -> None:
    model, _, values = make(CASES["mixtral"])
    architecture = from_hf_config(values)
    expert = 3 * 64 * 160 * 3  # three matrices in three layers
    assert architecture.parameters_total - architecture.parameters_active == (4 - 2) * expert
    assert architecture.experts == (2, 4)
    assert architecture.parameters_total == model.num_parameters()
