"""T5 and T5 v1.1: encoder and decoder with relative positions, cross-attention, no biases."""

from __future__ import annotations

from effprof.workload.architecture import Architecture, Builder, Config
from effprof.workload.architectures._parts import FEED_FORWARD, HEAD, PROJECTIONS, architecture_name

MODEL_TYPES = ("t5",)
_CROSS = "cross-attention projections"


def build(config: Config) -> Architecture:
    """Source tokens pay for the encoder and the decoder's keys and values over it, target tokens for the decoder.

    transformers 5 ties the head whatever `tie_word_embeddings` says; so does this count.
    """
    builder = Builder(config, "", causal=True)
    builder.name = architecture_name(config, "T5ForConditionalGeneration", builder.notes)
    builder.is_encoder_decoder = True
    hidden, inner = config.number("d_model", "hidden_size"), config.number("d_ff")
    layers = config.number("num_layers", "num_hidden_layers")
    decoder_layers = config.number_or("num_decoder_layers", layers)
    heads, size = config.number("num_heads", "num_attention_heads"), config.number("d_kv", "head_dim")
    vocabulary, buckets = config.number("vocab_size"), config.number_or("relative_attention_num_buckets", 32)
    is_gated = str(config.get("feed_forward_proj", "relu")).startswith("gated-")
    builder.weights(vocabulary * hidden + 2 * buckets * heads)
    builder.weights(hidden * (2 * layers + 1) + hidden * (3 * decoder_layers + 1))
    width = heads * size
    for per, depth in (("source_tokens", layers), ("target_tokens", decoder_layers)):
        builder.linear(PROJECTIONS, hidden, width, times=3 * depth, per=per)
        builder.linear(PROJECTIONS, width, hidden, times=depth, per=per)
        builder.linear(FEED_FORWARD, hidden, inner, times=depth * (2 if is_gated else 1), per=per)
        builder.linear(FEED_FORWARD, inner, hidden, times=depth, per=per)
    builder.linear(_CROSS, hidden, width, times=decoder_layers, per="target_tokens")
    builder.linear(_CROSS, hidden, width, times=2 * decoder_layers, per="source_tokens")
    builder.linear(_CROSS, width, hidden, times=decoder_layers, per="target_tokens")
    builder.attention(
        heads, size, size, layers=layers, per="source_pairs", square="source_square_pairs", is_causal=False
    )
    builder.attention(heads, size, size, layers=decoder_layers)
    builder.attention(
        heads, size, size, layers=decoder_layers, per="cross_pairs", square="cross_pairs", is_causal=False
    )
    if builder.name.endswith("ForConditionalGeneration"):
        builder.linear(HEAD, hidden, vocabulary, is_tied=True, per="target_tokens")
    elif not builder.name.endswith("T5Model"):
        raise config.unsupported(f"the head of {builder.name}")
    return builder.build()
