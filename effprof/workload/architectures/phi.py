"""Phi-1, 1.5 and 2: parallel attention and feed-forward under one norm, biases everywhere, the head's included."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import causal_builder, causal_head, feed_forward, grouped_attention

MODEL_TYPES = ("phi",)


def build(config: Config) -> Architecture:
    """`qk_layernorm` adds one norm for queries and one for keys per layer."""
    builder = causal_builder(config, "PhiForCausalLM")
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, vocabulary = config.number("num_attention_heads"), config.number("vocab_size")
    head_size = hidden // heads
    builder.weights(vocabulary * hidden + 2 * hidden * (layers + 1))
    if config.flag("qk_layernorm", False):
        builder.weights(4 * head_size * layers)
    grouped_attention(
        builder,
        hidden,
        heads=heads,
        kv_heads=config.number_or("num_key_value_heads", heads),
        head_size=head_size,
        windows=[None] * layers,
        qkv_bias=True,
        out_bias=True,
    )
    feed_forward(builder, hidden, config.number("intermediate_size"), gated=False, layers=layers, bias=True)
    causal_head(builder, hidden, vocabulary, tied=config.flag("tie_word_embeddings", False), bias=True)
    return builder.build()
