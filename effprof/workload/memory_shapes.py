"""The sizes inside a transformer that its activations follow from, read from a Hugging Face config, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effprof.errors import EffprofError
from effprof.workload.architecture import Config

# Tensors of the feed-forward's inner size that autograd keeps per token: input and output of the activation, with a
# gate also the other projection and the product. transformers writes `gelu_new` out in elementary operations.
_GATED_KEPT = 4
_KEPT_BY_ACTIVATION = {"gelu": 2, "gelu_pytorch_tanh": 2, "gelu_new": 5, "relu": 1, "silu": 2}


@dataclass(frozen=True)
class ModelShapes:
    """One decoder or encoder of equal layers.

    Attributes:
        hidden, layers, heads, kv_heads, head_size: as in the config.
        inner: width of the dense feed-forward part; inner_kept: tensors of that width kept per token.
        is_gated: whether the feed-forward part has a gate.
        is_fused: whether queries, keys and values (and gate and up) come from one projection each.
        is_rms: RMSNorm as transformers writes it out; else torch's layer norm.
        has_head_norms: whether queries and keys are normalised per head.
        vocabulary: width of the logits; labels for a classifier over whole samples.
        positions: fixed length of a vision model's sequence, else None.
        pixels: values of one image of a vision model.
        experts: (used, number) of the routed experts, expert_inner their width, sparse_layers how many layers route.
        window: sliding-window length, None without.
        dropout, attention_dropout: whether hidden states and attention weights are dropped out.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    inner_kept: int
    is_gated: bool
    vocabulary: int
    is_fused: bool = False
    is_rms: bool = True
    has_rotary: bool = True
    has_head_norms: bool = False
    positions: int | None = None
    pixels: int = 0
    experts: tuple[int, int] | None = None
    expert_inner: int = 0
    sparse_layers: int = 0
    window: int | None = None
    dropout: bool = False
    attention_dropout: bool = False

    @property
    def layer_parameters(self) -> int:
        """Weights of the linear layers of one dense layer (of a sparse one: without its experts)."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        if self.experts is not None and self.sparse_layers:
            return attention + self.hidden * self.experts[1]
        return attention + self.hidden * self.inner * (3 if self.is_gated else 2)

    @property
    def linear_parameters(self) -> int:
        """Weights that autocast copies: projections, dense feed-forward parts, routers and the head."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads) * self.layers
        dense = self.hidden * self.inner * (3 if self.is_gated else 2) * (self.layers - self.sparse_layers)
        routers = self.hidden * self.experts[1] * self.sparse_layers if self.experts else 0
        patches = self.hidden * self.pixels // max(1, (self.positions or 1) - 1)
        return attention + dense + routers + self.hidden * self.vocabulary + patches


def shapes_from_config(values: Mapping[str, Any]) -> ModelShapes:
    """The shapes that a Hugging Face config describes.

    Raises:
        EffprofError: the family's activations are not known here, or a key is missing.
    """
    config = Config(values)
    if config.family in _LLAMA_LIKE:
        return _llama_like(config)
    if config.family == "gpt2":
        return _gpt2(config)
    if config.family == "vit":
        return _vit(config)
    raise EffprofError(
        f"the activations of `{config.family}` are not known in closed form",
        f"Known: {', '.join(sorted([*_LLAMA_LIKE, 'gpt2', 'vit']))}. In training they are rehearsed on a fake copy.",
    )


_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "mixtral", "qwen3_moe")


def _llama_like(config: Config) -> ModelShapes:
    hidden, layers, heads = (
        config.number(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    family = config.family
    head_size = config.number_or("head_dim", 128 if family.startswith("qwen3") else hidden // heads)
    experts, expert_inner, sparse = None, 0, 0
    if family in ("mixtral", "qwen3_moe"):
        experts = (config.number("num_experts_per_tok"), config.number("num_local_experts", "num_experts"))
        expert_inner = config.number("moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size")
        step, dense = config.number_or("decoder_sparse_step", 1), set(config.get("mlp_only_layers") or ())
        sparse = sum(index not in dense and (index + 1) % step == 0 for index in range(layers))
    return ModelShapes(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=config.number_or("num_key_value_heads", heads),
        head_size=head_size,
        inner=config.number_or("intermediate_size", expert_inner or 1),
        inner_kept=_GATED_KEPT,
        is_gated=True,
        vocabulary=config.number("vocab_size"),
        is_fused=family == "phi3",
        has_head_norms=family in ("qwen3", "qwen3_moe"),
        experts=experts,
        expert_inner=expert_inner,
        sparse_layers=sparse,
        window=_window(config),
        attention_dropout=bool(config.get("attention_dropout", 0.0)),
        dropout=bool(config.get("resid_pdrop", 0.0)),
    )


def _window(config: Config) -> int | None:
    window = config.get("sliding_window")
    if config.family.startswith("qwen") and not config.flag("use_sliding_window", False):
        return None
    return int(window) if window else None


def _gpt2(config: Config) -> ModelShapes:
    hidden, layers = config.number("n_embd", "hidden_size"), config.number("n_layer", "num_hidden_layers")
    heads = config.number("n_head", "num_attention_heads")
    return ModelShapes(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        inner=config.number_or("n_inner", 4 * hidden),
        inner_kept=_kept_by(config, str(config.get("activation_function", "gelu_new"))),
        is_gated=False,
        vocabulary=config.number("vocab_size"),
        is_fused=True,
        is_rms=False,
        has_rotary=False,
        dropout=bool(config.get("resid_pdrop", 0.1)),
        attention_dropout=bool(config.get("attn_pdrop", 0.1)),
    )


def _vit(config: Config) -> ModelShapes:
    hidden, heads = config.number("hidden_size"), config.number("num_attention_heads")
    size, patch = config.number("image_size"), config.number("patch_size")
    return ModelShapes(
        hidden=hidden,
        layers=config.number("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        inner=config.number("intermediate_size"),
        inner_kept=_kept_by(config, str(config.get("hidden_act", "gelu"))),
        is_gated=False,
        vocabulary=config.labels(),
        is_rms=False,
        has_rotary=False,
        positions=(size // patch) ** 2 + 1,
        pixels=config.number_or("num_channels", 3) * size * size,
        dropout=bool(config.get("hidden_dropout_prob", 0.0)),
        attention_dropout=bool(config.get("attention_probs_dropout_prob", 0.0)),
    )


def _kept_by(config: Config, activation: str) -> int:
    kept = _KEPT_BY_ACTIVATION.get(activation)
    if kept is None:
        raise config.unsupported(f"the activation {activation}")
    return kept
