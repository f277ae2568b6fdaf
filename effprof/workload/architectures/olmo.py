"""OLMo, OLMo 2, OLMo 3 and OLMoE: Llama without norm weights, with norms after the layers, windows, and experts."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Builder, Config
from effprof.workload.architectures._parts import llama_like, routed_experts, windows_by_layer_types

MODEL_TYPES = ("olmo", "olmo2", "olmo3", "olmoe")
_NAMES = {
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
}


def build(config: Config) -> Architecture:
    """All but the first norm all queries and all keys at once, heads together; OLMo 3 slides on 3 of 4 layers."""
    family = config.family
    layers, hidden = config.number("num_hidden_layers"), config.number("hidden_size")
    heads = config.number("num_attention_heads")
    kv_heads = config.number_or("num_key_value_heads", heads)

    def add_norms(builder: Builder) -> None:
        if family != "olmo":
            builder.weights(layers * (hidden + hidden // heads * kv_heads))
        if family == "olmoe":
            routed_experts(
                builder,
                hidden,
                config.number("intermediate_size"),
                number=config.number("num_experts", "num_local_experts"),
                used=config.number("num_experts_per_tok"),
                layers=layers,
            )

    windows: list[int | None] = [None] * layers
    if family == "olmo3":
        slides = [(index + 1) % 4 != 0 for index in range(layers)]
        windows = windows_by_layer_types(config, layers, config.get("sliding_window", 4096), slides)
    bias = config.flag("attention_bias", False)
    return llama_like(
        config,
        _NAMES[family],
        qkv_bias=bias,
        out_bias=bias,
        uses_head_dim=False,
        windows=windows,
        norms_per_layer=0 if family == "olmo" else 2,
        has_final_norm=family != "olmo",
        dense_layers=0 if family == "olmoe" else None,
        add_experts=add_norms,
    )
