"""DeepSeek-V2 and V3: latent attention (MLA), shared and routed experts after the first dense layers."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Builder, Config
from effprof.workload.architectures._parts import (
    PROJECTIONS,
    SHARED_EXPERTS,
    causal_builder,
    causal_head,
    feed_forward,
    routed_experts,
)

MODEL_TYPES = ("deepseek_v2", "deepseek_v3")


def build(config: Config) -> Architecture:
    """The modules for predicting further tokens (`num_nextn_predict_layers`) are not part of transformers' model."""
    name = "DeepseekV3ForCausalLM" if config.family == "deepseek_v3" else "DeepseekV2ForCausalLM"
    builder = causal_builder(config, name)
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    vocabulary, is_tied = config.number("vocab_size"), config.flag("tie_word_embeddings", False)
    builder.weights(vocabulary * hidden + hidden + 2 * hidden * layers)
    _latent_attention(builder, config, hidden, layers)
    dense = min(layers, int(config.get("first_k_dense_replace", 3 if config.family == "deepseek_v3" else 0)))
    if config.get("moe_layer_freq", 1) not in (1, None):
        raise config.unsupported(f"moe_layer_freq {config.get('moe_layer_freq')}")
    bias = config.flag("mlp_bias", False) and config.family == "deepseek_v2"
    feed_forward(builder, hidden, config.number("intermediate_size"), gated=True, layers=dense, bias=bias)
    sparse = layers - dense
    if sparse:
        inner = config.number("moe_intermediate_size")
        routed_experts(
            builder,
            hidden,
            inner,
            number=config.number("n_routed_experts", "num_experts", "num_local_experts"),
            used=config.number("num_experts_per_tok"),
            layers=sparse,
        )
        shared = inner * config.number("n_shared_experts")
        feed_forward(builder, hidden, shared, gated=True, layers=sparse, bias=bias, group=SHARED_EXPERTS)
    causal_head(builder, hidden, vocabulary, tied=is_tied)
    return builder.build()


def _latent_attention(builder: Builder, config: Config, hidden: int, layers: int) -> None:
    heads = config.number("num_attention_heads")
    rope, nope = config.number("qk_rope_head_dim"), config.number("qk_nope_head_dim")
    value_size, latent = config.number("v_head_dim"), config.number("kv_lora_rank")
    bias = config.flag("attention_bias", False)
    if "q_lora_rank" not in config.values:
        raise config.missing("q_lora_rank")
    if config.get("q_lora_rank") is None:
        builder.linear(PROJECTIONS, hidden, heads * (nope + rope), times=layers)
    else:
        rank = config.number("q_lora_rank")
        builder.linear(PROJECTIONS, hidden, rank, bias=bias, times=layers)
        builder.linear(PROJECTIONS, rank, heads * (nope + rope), times=layers)
        builder.weights(rank * layers)
    builder.linear(PROJECTIONS, hidden, latent + rope, bias=bias, times=layers)
    builder.linear(PROJECTIONS, latent, heads * (nope + value_size), times=layers)
    builder.weights(latent * layers)
    builder.linear(PROJECTIONS, heads * value_size, hidden, bias=bias, times=layers)
    builder.attention(heads, nope + rope, value_size, layers=layers)
