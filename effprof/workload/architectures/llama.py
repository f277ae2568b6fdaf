"""Llama and the families that are Llama under another name: gated feed-forward, RMSNorm, grouped keys."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like

MODEL_TYPES = ("llama",)


def build(config: Config) -> Architecture:
    """Llama 1 to 3; biases where `attention_bias` or `mlp_bias` say so."""
    bias = config.flag("attention_bias", False)
    return llama_like(
        config,
        "LlamaForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )
