"""Mistral: Llama with one sliding window for all layers, or none (`sliding_window: null`)."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like

MODEL_TYPES = ("mistral",)


def build(config: Config) -> Architecture:
    """Mistral 7B and its successors. A config without the key has transformers' window of 4096."""
    window = config.get("sliding_window", 4096)
    return llama_like(
        config, "MistralForCausalLM", default_kv_heads=8, windows=[window] * config.number("num_hidden_layers")
    )
