"""OPT: learned positions with an offset of two, optional biases, an embedding that may be narrower than the model."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import (
    PROJECTIONS,
    causal_builder,
    causal_head,
    feed_forward,
    full_attention,
)

MODEL_TYPES = ("opt",)
_POSITION_OFFSET = 2


def build(config: Config) -> Architecture:
    """OPT-350m projects between embedding and model width and norms after the layers."""
    builder = causal_builder(config, "OPTForCausalLM")
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, vocabulary = config.number("num_attention_heads"), config.number("vocab_size")
    width = config.number_or("word_embed_proj_dim", hidden)
    bias, has_norms = config.flag("enable_bias", True), config.flag("layer_norm_elementwise_affine", True)
    builder.weights(vocabulary * width + (config.number("max_position_embeddings") + _POSITION_OFFSET) * hidden)
    if has_norms:
        builder.weights(4 * hidden * layers)
        if config.flag("do_layer_norm_before", True) and not config.flag("_remove_final_layer_norm", False):
            builder.weights(2 * hidden)
    if width != hidden:
        builder.linear(PROJECTIONS, width, hidden)
        builder.linear(PROJECTIONS, hidden, width)
    full_attention(builder, hidden, heads, layers, bias=bias)
    feed_forward(builder, hidden, config.number("ffn_dim"), gated=False, layers=layers, bias=bias)
    causal_head(builder, width, vocabulary, tied=config.flag("tie_word_embeddings", True))
    return builder.build()
