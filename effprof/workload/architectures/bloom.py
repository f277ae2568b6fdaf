"""BLOOM: ALiBi instead of positions, a norm after the embedding, biases, a tied head."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import causal_builder, causal_head, feed_forward, full_attention

MODEL_TYPES = ("bloom",)


def build(config: Config) -> Architecture:
    """Older configs call the width `n_embed`, and it wins."""
    builder = causal_builder(config, "BloomForCausalLM")
    hidden, layers = config.number("n_embed", "hidden_size"), config.number("n_layer", "num_hidden_layers")
    heads, vocabulary = config.number("n_head", "num_attention_heads"), config.number("vocab_size")
    builder.weights(vocabulary * hidden + 4 * hidden * layers + 4 * hidden)
    full_attention(builder, hidden, heads, layers, bias=True)
    feed_forward(builder, hidden, 4 * hidden, gated=False, layers=layers, bias=True)
    causal_head(builder, hidden, vocabulary, tied=config.flag("tie_word_embeddings", True))
    return builder.build()
