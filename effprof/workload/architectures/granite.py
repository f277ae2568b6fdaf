"""Granite 3: Llama with scaled residuals and logits, which cost no products."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like

MODEL_TYPES = ("granite",)


def build(config: Config) -> Architecture:
    """Biases where `attention_bias` or `mlp_bias` say so."""
    bias = config.flag("attention_bias", False)
    return llama_like(
        config,
        "GraniteForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
        uses_head_dim=False,
    )
