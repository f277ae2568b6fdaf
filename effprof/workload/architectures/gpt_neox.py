"""GPT-NeoX and Pythia: parallel attention and feed-forward with biases, an untied head without one."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import causal_builder, causal_head, feed_forward, full_attention

MODEL_TYPES = ("gpt_neox",)


def build(config: Config) -> Architecture:
    """`attention_bias` is on unless the config says otherwise."""
    builder = causal_builder(config, "GPTNeoXForCausalLM")
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, vocabulary = config.number("num_attention_heads"), config.number("vocab_size")
    bias = config.flag("attention_bias", True)
    builder.weights(vocabulary * hidden + 4 * hidden * layers + 2 * hidden)
    full_attention(builder, hidden, heads, layers, bias=bias)
    feed_forward(builder, hidden, config.number("intermediate_size"), gated=False, layers=layers, bias=True)
    causal_head(builder, hidden, vocabulary, tied=config.flag("tie_word_embeddings", False))
    return builder.build()
