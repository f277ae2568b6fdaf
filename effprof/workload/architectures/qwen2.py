"""Qwen2 and Qwen2.5: Llama with biased query, key and value, and windows from `max_window_layers` upwards."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like, upper_layer_windows

MODEL_TYPES = ("qwen2",)


def build(config: Config) -> Architecture:
    """A `sliding_window` counts only with `use_sliding_window`."""
    return llama_like(
        config, "Qwen2ForCausalLM", qkv_bias=True, windows=upper_layer_windows(config), uses_head_dim=False
    )
