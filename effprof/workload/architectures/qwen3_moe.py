"""Qwen3-MoE: Qwen3 with routed experts, no shared one."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like, routed_experts, sparse_layers

MODEL_TYPES = ("qwen3_moe",)


def build(config: Config) -> Architecture:
    """The window, where `use_sliding_window` asks for it, holds for all layers."""
    layers, hidden = config.number("num_hidden_layers"), config.number("hidden_size")
    sparse = sparse_layers(config, layers)
    window = config.get("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    bias = config.flag("attention_bias", False)
    head_size = config.get("head_dim")
    return llama_like(
        config,
        "Qwen3MoeForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        head_size=head_size,
        default_kv_heads=4,
        has_head_norms=True,
        windows=[window] * layers,
        dense_layers=layers - sparse,
        add_experts=lambda builder: routed_experts(
            builder,
            hidden,
            config.number("moe_intermediate_size"),
            number=config.number("num_experts", "num_local_experts"),
            used=config.number("num_experts_per_tok"),
            layers=sparse,
        ),
    )
