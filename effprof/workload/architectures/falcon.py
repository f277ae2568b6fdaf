"""Falcon: one key head for all queries (7B) or grouped ones (40B, 180B), parallel layers, a tied head."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import causal_builder, causal_head, feed_forward, grouped_attention

MODEL_TYPES = ("falcon",)


def build(config: Config) -> Architecture:
    """Number of norms and key heads follow `new_decoder_architecture`, `multi_query` and `parallel_attn`."""
    builder = causal_builder(config, "FalconForCausalLM")
    hidden, layers = config.number("n_embed", "hidden_size"), config.number("num_hidden_layers", "n_layer")
    heads, vocabulary = config.number("num_attention_heads", "n_head"), config.number("vocab_size")
    is_new, bias = config.flag("new_decoder_architecture", False), config.flag("bias", False)
    kv_heads = heads if is_new or not config.flag("multi_query", True) else 1
    if is_new:
        kv_heads = config.number_or("num_kv_heads", heads)
    is_parallel = config.flag("parallel_attn", True)
    norms = config.number_or("num_ln_in_parallel_attn", 2 if is_new else 1) if is_parallel else 2
    builder.weights(vocabulary * hidden + 2 * hidden * (norms * layers + 1))
    grouped_attention(
        builder,
        hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=hidden // heads,
        windows=[None] * layers,
        qkv_bias=bias,
        out_bias=bias,
    )
    inner = config.number_or("ffn_hidden_size", 4 * hidden)
    feed_forward(builder, hidden, inner, gated=False, layers=layers, bias=bias)
    causal_head(builder, hidden, vocabulary, tied=config.flag("tie_word_embeddings", True))
    return builder.build()
