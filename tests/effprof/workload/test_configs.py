"""What a config may leave out, and what is said when it leaves out too much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effprof.errors import EffprofError
from effprof.workload.architecture import Architecture, from_hf_config
from effprof.workload.architectures import builders
from effprof.workload.config_file import read_config_file
from effprof.workload.flops import report

CONFIGS = Path(__file__).parents[2] / "data" / "configs"


def config(name: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {**json.loads((CONFIGS / f"{name}.json").read_text()), **changes}
    return {key: value for key, value in values.items() if value is not ...}


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("llama-3-8b", {"tie_word_embeddings": ..., "attention_bias": ..., "head_dim": None}),
        ("mistral-7b", {"sliding_window": ..., "tie_word_embeddings": ..., "num_key_value_heads": ...}),
        ("mixtral-8x7b", {"sliding_window": ..., "head_dim": None}),
        ("qwen3-8b", {"head_dim": ..., "use_sliding_window": ..., "sliding_window": 4096}),
        ("qwen3-30b-a3b", {"mlp_only_layers": None, "decoder_sparse_step": ..., "max_window_layers": ...}),
        ("gemma-2b", {"head_dim": ..., "tie_word_embeddings": True}),
        ("deepseek-v3", {"attention_bias": ..., "moe_layer_freq": ..., "first_k_dense_replace": ...}),
        ("gpt2", {"n_inner": None, "tie_word_embeddings": True, "architectures": ...}),
        ("bert-base", {"type_vocab_size": ..., "architectures": ["BertForMaskedLM"]}),
        ("t5-base", {"num_decoder_layers": 12, "is_gated_act": False, "relative_attention_num_buckets": ...}),
        ("vit-base-16", {"num_channels": ..., "qkv_bias": ..., "image_size": [224, 224]}),
    ],
)
def test_documented_defaults_change_nothing(name: str, same: dict[str, Any]) -> None:
    def numbers(architecture: Architecture) -> tuple[Any, ...]:
        totals = architecture.parameters_total, architecture.parameters_active
        return (*totals, architecture.terms, architecture.window, architecture.causal)

    assert numbers(from_hf_config(config(name, **same))) == numbers(from_hf_config(config(name)))


def test_null_key_heads_mean_all_heads() -> None:
    grouped, whole = (from_hf_config(config("llama-3-8b", num_key_value_heads=heads)) for heads in (8, None))
    assert whole.parameters_total - grouped.parameters_total == 32 * 2 * 4096 * (4096 - 1024)


def test_null_window_is_no_window() -> None:
    assert from_hf_config(config("mistral-7b", sliding_window=None)).window is None
    assert from_hf_config(config("mistral-7b")).window == 4096


def test_a_class_that_is_assumed_is_named() -> None:
    architecture = from_hf_config(config("gpt2", architectures=...))
    assert architecture.name == "GPT2LMHeadModel"
    assert any("names no architecture" in note for note in architecture.notes)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama-3-8b", "hidden_size"),
        ("llama-3-8b", "intermediate_size"),
        ("llama-3-8b", "vocab_size"),
        ("mixtral-8x7b", "num_local_experts"),
        ("mixtral-8x7b", "num_experts_per_tok"),
        ("qwen3-30b-a3b", "moe_intermediate_size"),
        ("deepseek-v3", "q_lora_rank"),
        ("deepseek-v3", "v_head_dim"),
        ("gpt2", "n_layer"),
        ("t5-base", "d_kv"),
        ("vit-base-16", "patch_size"),
        ("bert-base", "max_position_embeddings"),
    ],
)
def test_a_missing_size_is_named_not_guessed(name: str, key: str) -> None:
    with pytest.raises(EffprofError, match=f"no `{key}`") as caught:
        from_hf_config(config(name, **{key: ...}))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no `model_type`"),
        ({"model_type": "no-such-model"}, "unknown model_type `no-such-model`"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "`gemma3` joins several models"),
        ({"model_type": "llava", "text_config": {}, "vision_config": {}}, "unknown model_type `llava`"),
        (config("llama-3-8b", hidden_size=-1), "`hidden_size` in the config is -1"),
        (config("llama-3-8b", hidden_size="big"), "`hidden_size` in the config is 'big'"),
        (config("llama-3-8b", num_hidden_layers=2.5), "`num_hidden_layers` in the config is 2.5"),
        (config("llama-3-8b", architectures=["LlamaForDancing"]), "the head of LlamaForDancing"),
        (config("mixtral-8x7b", num_experts_per_tok=9), "9 of 8 experts"),
        (config("deepseek-v3", moe_layer_freq=2), "moe_layer_freq 2"),
        (config("qwen3-8b", layer_types=["linear_attention"] * 36), "layer types"),
        (config("qwen3-8b", layer_types=["full_attention"] * 3), "3 layer types for 36 layers"),
        (config("vit-base-16", patch_size=15), "no multiple of patch_size"),
        (config("bert-base", is_decoder=True), "is_decoder"),
        (config("gpt2", add_cross_attention=True), "add_cross_attention"),
    ],
)
def test_what_is_not_known_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EffprofError, match=message) as caught:
        from_hf_config(values)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq": 0}, "--seq is 0"),
        ({"seq": -5}, "--seq is -5"),
        ({}, "needs a sequence length"),
        ({"seq": 8, "target_seq": 8}, "--target-seq does not apply"),
    ],
)
def test_lengths_are_checked(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(EffprofError, match=message):
        report(from_hf_config(config("llama-3-8b")), **arguments)


def test_image_size_is_for_images() -> None:
    with pytest.raises(EffprofError, match="takes no images"):
        from_hf_config(config("llama-3-8b"), image_size=224)
    small, large = (from_hf_config(config("vit-base-16"), image_size=side) for side in (224, 448))
    assert (small.positions_per_sample, large.positions_per_sample) == (197, 785)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(EffprofError, match="no such file"):
        read_config_file(str(path))
    path.write_text("{not json")
    with pytest.raises(EffprofError, match="is no JSON"):
        read_config_file(str(path))
    path.write_text("[1]")
    with pytest.raises(EffprofError, match="holds no JSON object"):
        read_config_file(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EffprofError, match="is no JSON"):
        read_config_file(str(path))
    path.write_text(json.dumps(config("gpt2")))
    assert read_config_file(str(tmp_path)) == read_config_file(str(path)) == config("gpt2")


def test_every_family_is_one_file_that_names_its_model_types() -> None:
    known = builders()
    assert {"gpt2", "llama", "mistral", "qwen3", "gemma", "mixtral", "qwen3_moe", "deepseek_v3", "olmoe"} <= set(known)
    assert {"bert", "vit", "t5"} <= set(known)
    assert all(build.__doc__ for build in known.values())
