"""ViT: an image cut into patches, a bidirectional encoder over them and one more position for the class."""

from __future__ import annotations

from typing import Any

from effprof.errors import EffprofError
from effprof.workload.architecture import Architecture, Builder, Config
from effprof.workload.architectures._parts import FEED_FORWARD, HEAD, PROJECTIONS, architecture_name

MODEL_TYPES = ("vit",)


def build(config: Config) -> Architecture:
    """All costs are per sample: an image of `image_size` has a fixed number of positions."""
    builder = Builder(config, "", causal=False)
    builder.name = architecture_name(config, "ViTForImageClassification", builder.notes)
    hidden, layers = config.number("hidden_size"), config.number("num_hidden_layers")
    heads, inner = config.number("num_attention_heads"), config.number("intermediate_size")
    height, width = _pair(config, "image_size")
    patch_height, patch_width = _pair(config, "patch_size")
    if height % patch_height or width % patch_width:
        raise EffprofError(f"image_size {height}×{width} is no multiple of patch_size {patch_height}×{patch_width}")
    patches = (height // patch_height) * (width // patch_width)
    positions = patches + 1
    builder.positions_per_sample = positions
    channels = config.number_or("num_channels", 3)
    # the image needs no gradient, so the patch embedding trains at 2 × forward
    builder.linear(
        "patch embedding",
        channels * patch_height * patch_width,
        hidden,
        bias=True,
        per="samples",
        runs=patches,
        is_first=True,
    )
    builder.weights(hidden + positions * hidden + 4 * hidden * layers + 2 * hidden)
    bias = config.flag("qkv_bias", True)
    per = {"per": "samples", "runs": positions}
    builder.linear(PROJECTIONS, hidden, hidden, bias=bias, times=3 * layers, **per)  # type: ignore[arg-type]
    builder.linear(PROJECTIONS, hidden, hidden, bias=True, times=layers, **per)  # type: ignore[arg-type]
    builder.linear(FEED_FORWARD, hidden, inner, bias=True, times=layers, **per)  # type: ignore[arg-type]
    builder.linear(FEED_FORWARD, inner, hidden, bias=True, times=layers, **per)  # type: ignore[arg-type]
    builder.attention(heads, hidden // heads, hidden // heads, layers=layers, per="samples", runs=positions**2)
    _head(builder, config, hidden)
    return builder.build()


def _head(builder: Builder, config: Config, hidden: int) -> None:
    if builder.name.endswith("ForImageClassification"):
        builder.linear(HEAD, hidden, config.labels(), bias=True, per="samples")
    elif builder.name.endswith("Model"):
        size = config.number_or("pooler_output_size", hidden)
        builder.weights(hidden * size + size)
        builder.notes.append("the pooler's parameters are counted, its FLOPs (one position per sample) are not")
    else:
        raise config.unsupported(f"the head of {builder.name}")


def _pair(config: Config, name: str) -> tuple[int, int]:
    value: Any = config.get(name)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    side = config.number(name)
    return side, side
