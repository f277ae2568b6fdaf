"""gpt-oss: experts with biases on every layer, a window on every other, attention sinks."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Builder, Config
from effprof.workload.architectures._parts import llama_like, routed_experts, windows_by_layer_types

MODEL_TYPES = ("gpt_oss",)


def build(config: Config) -> Architecture:
    """The sink of each head takes part in the softmax only, so it has a parameter and no product."""
    layers, hidden = config.number("num_hidden_layers"), config.number("hidden_size")
    slides = [index % 2 == 0 for index in range(layers)]
    bias = config.flag("attention_bias", True)

    def add_experts(builder: Builder) -> None:
        inner, number = config.number("intermediate_size"), config.number("num_local_experts", "num_experts")
        used = config.number("num_experts_per_tok", "experts_per_token")
        routed_experts(builder, hidden, inner, number=number, used=used, layers=layers, router_extra=number)
        biases = (2 * inner + hidden) * layers
        builder.weights(biases * number, used=biases * used)
        builder.weights(config.number("num_attention_heads") * layers)

    return llama_like(
        config,
        "GptOssForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        head_size=64 if "head_dim" not in config.values else None,
        default_kv_heads=8,
        windows=windows_by_layer_types(config, layers, config.get("sliding_window", 128), slides),
        dense_layers=0,
        add_experts=add_experts,
    )
