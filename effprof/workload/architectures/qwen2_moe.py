"""Qwen1.5-MoE and Qwen2-MoE: routed experts beside one gated shared expert, dense layers where the config puts them."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Builder, Config
from effprof.workload.architectures._parts import (
    SHARED_EXPERTS,
    feed_forward,
    llama_like,
    routed_experts,
    sparse_layers,
    windows_by_layer_types,
)

MODEL_TYPES = ("qwen2_moe",)


def build(config: Config) -> Architecture:
    """Every `decoder_sparse_step`-th layer not in `mlp_only_layers` is sparse."""
    layers, hidden = config.number("num_hidden_layers"), config.number("hidden_size")
    sparse = sparse_layers(config, layers)
    uses_window = config.flag("use_sliding_window", False)
    last = config.number_or("max_window_layers", 28)
    slides = [uses_window and index % 2 == 0 and index < last for index in range(layers)]

    def add_experts(builder: Builder) -> None:
        routed_experts(
            builder,
            hidden,
            config.number("moe_intermediate_size"),
            number=config.number("num_experts"),
            used=config.number("num_experts_per_tok"),
            layers=sparse,
        )
        shared = config.number("shared_expert_intermediate_size")
        feed_forward(builder, hidden, shared, gated=True, layers=sparse, group=SHARED_EXPERTS)
        builder.linear(SHARED_EXPERTS, hidden, 1, times=sparse)

    return llama_like(
        config,
        "Qwen2MoeForCausalLM",
        qkv_bias=config.flag("qkv_bias", True),
        uses_head_dim=False,
        windows=windows_by_layer_types(config, layers, config.get("sliding_window", 4096), slides),
        dense_layers=layers - sparse,
        add_experts=add_experts,
    )
