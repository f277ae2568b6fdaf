"""Gemma: Llama with a tied head and a head size of its own."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like

MODEL_TYPES = ("gemma",)


def build(config: Config) -> Architecture:
    """Gemma 1. The head is tied unless the config says otherwise."""
    bias = config.flag("attention_bias", False)
    return llama_like(
        config,
        "GemmaForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        head_size=config.number_or("head_dim", 256),
        is_tied=True,
        is_causal=not config.flag("use_bidirectional_attention", False),
    )
