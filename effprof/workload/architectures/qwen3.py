"""Qwen3: Llama with normed queries and keys and a head size that is not hidden size over heads."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like, upper_layer_windows

MODEL_TYPES = ("qwen3",)


def build(config: Config) -> Architecture:
    """transformers' default head size is 128, whatever the hidden size."""
    bias = config.flag("attention_bias", False)
    return llama_like(
        config,
        "Qwen3ForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        head_size=config.number_or("head_dim", 128),
        windows=upper_layer_windows(config),
        has_head_norms=True,
    )
