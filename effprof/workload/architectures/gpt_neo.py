"""GPT-Neo: GPT-2 whose layers take turns between full attention and a window."""

from __future__ import annotations

from typing import Any

from effprof.workload.architecture import Architecture, Config
from effprof.workload.architectures._parts import causal_builder, causal_head, feed_forward, grouped_attention

MODEL_TYPES = ("gpt_neo",)


def build(config: Config) -> Architecture:
    """`attention_types` is a list of [[kinds], repeats]; only the output projection has a bias."""
    builder = causal_builder(config, "GPTNeoForCausalLM")
    hidden, layers = config.number("hidden_size"), config.number("num_layers", "num_hidden_layers")
    heads, vocabulary = config.number("num_heads", "num_attention_heads"), config.number("vocab_size")
    builder.weights((vocabulary + config.number("max_position_embeddings")) * hidden + 4 * hidden * layers + 2 * hidden)
    window = config.number_or("window_size", 256)
    grouped_attention(
        builder,
        hidden,
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        windows=[window if kind == "local" else None for kind in _kinds(config, layers)],
        out_bias=True,
    )
    inner = config.number_or("intermediate_size", 4 * hidden)
    feed_forward(builder, hidden, inner, gated=False, layers=layers, bias=True)
    causal_head(builder, hidden, vocabulary, tied=config.flag("tie_word_embeddings", True))
    return builder.build()


def _kinds(config: Config, layers: int) -> list[str]:
    types: Any = config.get("attention_types")
    if types is None:
        raise config.missing("attention_types")
    kinds = [kind for pattern, repeats in types for _ in range(repeats) for kind in pattern]
    if len(kinds) != layers or not set(kinds) <= {"global", "local"}:
        raise config.unsupported(f"attention_types for {len(kinds)} of {layers} layers")
    return kinds
