"""Parts that many families share: heads of causal models, attention with grouped keys, feed-forward layers, experts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from effprof.workload.architecture import Architecture, Builder, Config

PROJECTIONS = "attention projections"
FEED_FORWARD = "feed-forward"
EXPERTS = "experts"
SHARED_EXPERTS = "shared experts"
ROUTER = "router"
HEAD = "head"


def architecture_name(config: Config, default: str, notes: list[str]) -> str:
    """The class that is counted: the config's `architectures`, else the one that the family is pre-trained as."""
    names = config.get("architectures")
    if names:
        return str(names[0])
    notes.append(f"the config names no architecture: counted as {default}")
    return default


def causal_builder(config: Config, default: str, *, causal: bool = True) -> Builder:
    """A builder named after what the config calls itself."""
    builder = Builder(config, "", causal=causal)
    builder.name = architecture_name(config, default, builder.notes)
    return builder


def causal_head(
    builder: Builder,
    hidden: int,
    vocabulary: int,
    *,
    tied: bool,
    bias: bool = False,
    classifier_bias: bool = False,
) -> None:
    """The head that the architecture's class has on top of a decoder: logits, labels, or nothing."""
    name, config = builder.name, builder.config
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        builder.linear(HEAD, hidden, vocabulary, is_tied=tied, bias=bias)
    elif name.endswith("ForSequenceClassification"):
        builder.linear(HEAD, hidden, config.labels(), bias=classifier_bias)
    elif name.endswith("ForTokenClassification"):
        builder.linear(HEAD, hidden, config.labels(), bias=True)
    elif name.endswith("ForQuestionAnswering"):
        builder.linear(HEAD, hidden, 2, bias=True)
    elif not name.endswith("Model"):
        raise config.unsupported(f"the head of {name}")


def grouped_attention(
    builder: Builder,
    hidden: int,
    *,
    heads: int,
    kv_heads: int,
    head_size: int,
    windows: Sequence[int | None],
    qkv_bias: bool = False,
    out_bias: bool = False,
) -> None:
    """Query, key, value and output projections and attention of `len(windows)` layers, each with its window."""
    layers = len(windows)
    builder.linear(PROJECTIONS, hidden, heads * head_size, bias=qkv_bias, times=layers)
    builder.linear(PROJECTIONS, hidden, kv_heads * head_size, bias=qkv_bias, times=2 * layers)
    builder.linear(PROJECTIONS, heads * head_size, hidden, bias=out_bias, times=layers)
    windowed_attention(builder, heads, head_size, head_size, windows)


def full_attention(builder: Builder, hidden: int, heads: int, layers: int, *, bias: bool) -> None:
    """Plain multi-head attention: as many keys as queries, no window, biases everywhere or nowhere."""
    grouped_attention(
        builder,
        hidden,
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        windows=[None] * layers,
        qkv_bias=bias,
        out_bias=bias,
    )


def windowed_attention(
    builder: Builder, heads: int, key_size: int, value_size: int, windows: Sequence[int | None]
) -> None:
    """Attention of one layer per entry of `windows`, None for a layer that sees all."""
    for window, layers in Counter(windows).items():
        if window is None:
            builder.attention(heads, key_size, value_size, layers=layers)
            continue
        if builder.window not in (None, window):
            raise builder.config.unsupported("windows of several lengths")
        builder.window = window
        builder.attention(heads, key_size, value_size, layers=layers, per="window_pairs")


def feed_forward(
    builder: Builder,
    hidden: int,
    inner: int,
    *,
    gated: bool,
    layers: int,
    bias: bool = False,
    group: str = FEED_FORWARD,
) -> None:
    """Two linear layers, three where an activation gates them."""
    builder.linear(group, hidden, inner, bias=bias, times=layers * (2 if gated else 1))
    builder.linear(group, inner, hidden, bias=bias, times=layers)


def routed_experts(
    builder: Builder, hidden: int, inner: int, *, number: int, used: int, layers: int, router_extra: int = 0
) -> None:
    """Router and gated experts of `layers` layers; `router_extra` counts its parameters outside the matrix."""
    if used > number:
        raise builder.config.unsupported(f"{used} of {number} experts per token")
    builder.linear(ROUTER, hidden, number, times=layers)
    builder.weights(router_extra * layers)
    builder.linear(EXPERTS, hidden, inner, times=2 * number * layers, used=2 * used * layers)
    builder.linear(EXPERTS, inner, hidden, times=number * layers, used=used * layers)
    if layers:
        builder.experts = (used, number)


def windows_by_layer_types(config: Config, layers: int, window: Any, default: Sequence[bool]) -> list[int | None]:
    """Each layer's window from `layer_types`, else from `default` (True where the family slides)."""
    types = config.get("layer_types")
    if types is None:
        slides = list(default)
    else:
        if not set(types) <= {"full_attention", "sliding_attention"}:
            raise config.unsupported(f"layer types {sorted(set(types))}")
        slides = [name == "sliding_attention" for name in types]
    if len(slides) != layers:
        raise config.unsupported(f"{len(slides)} layer types for {layers} layers")
    if any(slides) and not window:
        raise config.missing("sliding_window")
    return [int(window) if slide else None for slide in slides]


def upper_layer_windows(config: Config) -> list[int | None]:
    """Qwen's rule: with `use_sliding_window`, layers from `max_window_layers` (28) upwards slide."""
    layers = config.number("num_hidden_layers")
    uses_window = config.flag("use_sliding_window", False)
    first = config.get("max_window_layers", 28)
    window = config.get("sliding_window", 4096) if uses_window else None
    slides = [window is not None and index >= first for index in range(layers)]
    return windows_by_layer_types(config, layers, window or config.get("sliding_window"), slides)


def sparse_layers(config: Config, layers: int) -> int:
    """How many layers route to experts: every `decoder_sparse_step`-th one that is not in `mlp_only_layers`."""
    step, dense = config.number_or("decoder_sparse_step", 1), set(config.get("mlp_only_layers") or ())
    return sum(index not in dense and (index + 1) % step == 0 for index in range(layers))


def llama_like(
    config: Config,
    default_name: str,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    uses_head_dim: bool = True,
    head_size: int | None = None,
    default_kv_heads: int | None = None,
    is_tied: bool = False,
    is_causal: bool = True,
    norms_per_layer: int = 2,
    has_final_norm: bool = True,
    has_head_norms: bool = False,
    windows: Sequence[int | None] | None = None,
    dense_layers: int | None = None,
    add_experts: Callable[[Builder], None] | None = None,
) -> Architecture:
    """The decoder that most families share: grouped attention, gated feed-forward, RMSNorm.

    Args:
        default_name: the class counted where the config names none.
        uses_head_dim: whether the family reads `head_dim`; else it is hidden size over heads.
        head_size: the head size where the family's default is another.
        default_kv_heads: transformers' default where `num_key_value_heads` is absent (null means all heads).
        is_tied: the family's default of `tie_word_embeddings`.
        has_head_norms: one norm of the head size each for queries and keys.
        windows: per layer; no windows by default.
        dense_layers: how many layers have a dense feed-forward part; all by default.
        add_experts: adds what the other layers have.
    """
    builder = causal_builder(config, default_name, causal=is_causal)
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, vocabulary = config.number("num_attention_heads"), config.number("vocab_size")
    if head_size is None:
        head_size = config.number_or("head_dim", hidden // heads) if uses_head_dim else hidden // heads
    if "num_key_value_heads" in config.values or default_kv_heads is None:
        kv_heads = config.number_or("num_key_value_heads", heads)
    else:
        kv_heads = default_kv_heads
    windows = [None] * layers if windows is None else windows
    builder.weights(vocabulary * hidden + (hidden if has_final_norm else 0))
    builder.weights(layers * (norms_per_layer * hidden + (2 * head_size if has_head_norms else 0)))
    grouped_attention(
        builder,
        hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        windows=windows,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
    )
    dense = layers if dense_layers is None else dense_layers
    if dense:
        feed_forward(builder, hidden, config.number("intermediate_size"), gated=True, layers=dense, bias=mlp_bias)
    if add_experts is not None:
        add_experts(builder)
    causal_head(builder, hidden, vocabulary, tied=config.flag("tie_word_embeddings", is_tied))
    return builder.build()
