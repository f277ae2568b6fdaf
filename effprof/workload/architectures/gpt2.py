"""GPT-2: learned positions, biases, a plain feed-forward layer of 4 × width, a tied head."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import causal_builder, causal_head, feed_forward, full_attention

MODEL_TYPES = ("gpt2",)


def build(config: Config) -> Architecture:
    """Key names are GPT-2's own (`n_embd`, `n_layer`, `n_head`); the names that other families use are read too."""
    if config.flag("add_cross_attention", False):
        raise config.unsupported("add_cross_attention")
    builder = causal_builder(config, "GPT2LMHeadModel")
    hidden, layers = config.number("n_embd", "hidden_size"), config.number("n_layer", "num_hidden_layers")
    heads, vocabulary = config.number("n_head", "num_attention_heads"), config.number("vocab_size")
    positions = config.number("n_positions", "max_position_embeddings")
    builder.weights((vocabulary + positions) * hidden + 4 * hidden * layers + 2 * hidden)
    full_attention(builder, hidden, heads, layers, bias=True)
    feed_forward(builder, hidden, config.number_or("n_inner", 4 * hidden), gated=False, layers=layers, bias=True)
    if builder.name.endswith("DoubleHeadsModel"):
        raise config.unsupported(f"the head of {builder.name}")
    causal_head(builder, hidden, vocabulary, tied=config.flag("tie_word_embeddings", True))
    return builder.build()
