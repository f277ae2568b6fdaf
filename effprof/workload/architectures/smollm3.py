"""SmolLM3: Llama with a tied head; every fourth layer goes without rotary positions, which costs no products."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import llama_like

MODEL_TYPES = ("smollm3",)


def build(config: Config) -> Architecture:
    """Sliding windows, which no published model uses, are refused."""
    if config.flag("use_sliding_window", False):
        raise config.unsupported("use_sliding_window")
    bias = config.flag("attention_bias", False)
    return llama_like(
        config,
        "SmolLM3ForCausalLM",
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
        uses_head_dim=False,
        default_kv_heads=4,
        is_tied=True,
    )
