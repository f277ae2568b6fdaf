"""Mixtral: Mistral whose feed-forward layers are all routed experts."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like, routed_experts

MODEL_TYPES = ("mixtral",)


def build(config: Config) -> Architecture:
    """Mixtral 8x7B and 8x22B; a window only where the config has one."""
    layers, hidden = config.number("num_hidden_layers"), config.number("hidden_size")
    return llama_like(
        config,
        "MixtralForCausalLM",
        default_kv_heads=8,
        windows=[config.get("sliding_window")] * layers,
        dense_layers=0,
        add_experts=lambda builder: routed_experts(
            builder,
            hidden,
            config.number("intermediate_size"),
            number=config.number("num_local_experts", "num_experts"),
            used=config.number("num_experts_per_tok"),
            layers=layers,
        ),
    )
