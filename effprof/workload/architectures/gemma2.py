"""Gemma 2 and the text side of Gemma 3: four norms a layer, windows on most layers, a tied head."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like, windows_by_layer_types

MODEL_TYPES = ("gemma2", "gemma3_text")


def build(config: Config) -> Architecture:
    """Gemma 2 slides on every other layer, Gemma 3 on five of six, or as `layer_types` says."""
    if config.flag("use_bidirectional_attention", False):
        raise config.unsupported("use_bidirectional_attention")
    layers = config.number("num_hidden_layers")
    is_third = config.family == "gemma3_text"
    period = config.number_or("sliding_window_pattern", 6) if is_third else 2
    slides = [(index + 1) % period != 0 for index in range(layers)]
    bias = config.flag("attention_bias", False)
    return llama_like(
        config,
        "Gemma3ForCausalLM" if is_third else "Gemma2ForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        head_size=config.number_or("head_dim", 256),
        is_tied=True,
        norms_per_layer=4,
        has_head_norms=is_third,
        windows=windows_by_layer_types(config, layers, config.get("sliding_window", 4096), slides),
    )
