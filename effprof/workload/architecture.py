"""What a model is made of, as far as its FLOPs and parameters go: read from a Hugging Face config, without torch.

A family lives in one file of `effprof.workload.architectures`: it names its `MODEL_TYPES` and has a `build(config)`
that fills a `Builder`. A new architecture is one such file and one test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effprof.errors import EffprofError

TOKEN_COUNTERS = ("tokens", "source_tokens", "target_tokens")


@dataclass(frozen=True)
class Term:
    """One kind of matrix product: what it costs per unit of a counter.

    Attributes:
        group: the part of the model it belongs to, for the breakdown ("attention projections").
        per: counter of `effprof.runlog.schema.COUNTERS` that it grows with.
        flops: training FLOPs per unit: 3 × forward, 2 × where the input needs no gradient.
        square: for attention, the counter that conventions which ignore the mask use instead; else "".
        is_causal: for attention, whether Megatron's convention halves it.
    """

    group: str
    per: str
    flops: float
    square: str = ""
    is_causal: bool = False


@dataclass(frozen=True)
class Architecture:
    """A model's matrix products and parameters.

    Attributes:
        family: the config's `model_type`.
        name: class that is counted, as in the config's `architectures` ("LlamaForCausalLM").
        parameters_total: all parameters, tied ones once.
        parameters_active: those that one token meets: all but the experts it is not routed to.
        terms: the matrix products.
        causal: whether attention is causal (of the decoder, in an encoder-decoder).
        window: sliding-window length of the layers that have one; None without.
        is_encoder_decoder: whether source and target tokens are counted apart.
        positions_per_sample: fixed sequence length of a model that takes no tokens (vision), else None.
        experts: routed experts per token and in total, None for dense models.
        notes: what was taken from transformers' defaults or deserves a remark.
    """

    family: str
    name: str
    parameters_total: int
    parameters_active: int
    terms: tuple[Term, ...]
    causal: bool
    window: int | None = None
    is_encoder_decoder: bool = False
    positions_per_sample: int | None = None
    experts: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


class Config:
    """A config.json with honest access: a missing key is an error that names it."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.family = str(values.get("model_type", ""))

    def number(self, *names: str) -> int:
        """A positive whole number under the first of `names` present."""
        for name in names:
            if self.values.get(name) is not None:
                return self._whole(name)
        raise self.missing(names[0])

    def number_or(self, name: str, default: int) -> int:
        """Like `number`, with transformers' documented default where the key is absent or null."""
        return default if self.values.get(name) is None else self._whole(name)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean, with transformers' documented default where the key is absent or null."""
        value = self.values.get(name)
        return default if value is None else bool(value)

    def get(self, name: str, default: Any = None) -> Any:
        """Any other value, with transformers' documented default where the key is absent."""
        return self.values.get(name, default)

    def missing(self, name: str) -> EffprofError:
        """The error for a key that the family needs."""
        return EffprofError(
            f"the config has no `{name}`, which {self.family} needs",
            f"Add `{name}` to the config; effprof does not guess it.",
        )

    def unsupported(self, what: str) -> EffprofError:
        """The error for a variant whose FLOPs are not known here."""
        return EffprofError(
            f"{self.family} with {what} is not supported by the closed form",
            "Measure it in training (operations are counted there), or pass `flops_per_step=`.",
        )

    def _whole(self, name: str) -> int:
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value <= 0:
            raise EffprofError(f"`{name}` in the config is {value!r}, not a positive whole number")
        return int(value)

    def labels(self) -> int:
        """Number of classes: `num_labels`, else the length of `id2label`, else transformers' default of 2."""
        if self.values.get("num_labels") is not None:
            return self._whole("num_labels")
        names = self.values.get("id2label")
        return len(names) if names else 2


class Builder:
    """Collects a model's matrix products and parameters, part by part."""

    def __init__(self, config: Config, name: str, *, causal: bool) -> None:
        self.config, self.name, self.causal = config, name, causal
        self.total = self.active = 0
        self.window: int | None = None
        self.experts: tuple[int, int] | None = None
        self.is_encoder_decoder = False
        self.positions_per_sample: int | None = None
        self.notes: list[str] = []
        self._flops: dict[Term, float] = {}

    def linear(
        self,
        group: str,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        times: int = 1,
        used: int | None = None,
        per: str = "tokens",
        runs: int = 1,
        is_first: bool = False,
        is_tied: bool = False,
    ) -> None:
        """Add `times` linear layers of `inputs` × `outputs`.

        Args:
            used: how many of them one token meets (experts); all by default.
            runs: how often each runs per unit of `per`.
            is_first: its input needs no gradient, so training costs 2 × forward.
            is_tied: its weight is another's and adds no parameters (the bias does).
        """
        used = times if used is None else used
        size = (0 if is_tied else inputs * outputs) + (outputs if bias else 0)
        self.weights(size * times, used=size * used)
        self._add(group, per, (2 if is_first else 3) * 2.0 * inputs * outputs * used * runs)

    def weights(self, number: int, *, used: int | None = None) -> None:
        """Add parameters that no matrix product uses: embeddings, norms, biases."""
        self.total += number
        self.active += number if used is None else used

    def attention(
        self,
        heads: int,
        key_size: int,
        value_size: int,
        *,
        layers: int = 1,
        per: str = "pairs",
        square: str = "square_pairs",
        is_causal: bool | None = None,
        runs: int = 1,
    ) -> None:
        """Add QKᵀ and the weighted sum of V of `layers` layers, per attended pair."""
        flops = 3 * 2.0 * heads * (key_size + value_size) * layers * runs
        is_causal = self.causal if is_causal is None else is_causal
        if per in ("pairs", "window_pairs", "source_pairs", "cross_pairs"):
            self._add("attention over pairs", per, flops, square, is_causal)
        else:
            self._add("attention over pairs", per, flops)

    def build(self) -> Architecture:
        """The finished architecture."""
        terms = tuple(
            Term(term.group, term.per, flops, term.square, term.is_causal) for term, flops in self._flops.items()
        )
        return Architecture(
            family=self.config.family,
            name=self.name,
            parameters_total=self.total,
            parameters_active=self.active,
            terms=terms,
            causal=self.causal,
            window=self.window,
            is_encoder_decoder=self.is_encoder_decoder,
            positions_per_sample=self.positions_per_sample,
            experts=self.experts,
            notes=tuple(self.notes),
        )

    def _add(self, group: str, per: str, flops: float, square: str = "", is_causal: bool = False) -> None:
        if flops:
            key = Term(group, per, 0.0, square, is_causal)
            self._flops[key] = self._flops.get(key, 0.0) + flops


def from_hf_config(config: Mapping[str, Any], *, image_size: int | None = None) -> Architecture:
    """The architecture that a Hugging Face config describes.

    Args:
        config: the parsed `config.json`.
        image_size: side of a square image for vision models; by default the config's own.

    Raises:
        EffprofError: unknown `model_type`, a missing key, or a variant whose FLOPs are not known here.
    """
    from effprof.workload.architectures import builders

    if not isinstance(config, Mapping):
        raise EffprofError("the config is not a JSON object")
    known = builders()
    family = config.get("model_type")
    if not family:
        raise EffprofError("the config has no `model_type`", "Give the config.json of a Hugging Face model.")
    build = known.get(str(family))
    if build is None:
        nested = next((key for key in ("text_config", "llm_config", "language_config") if config.get(key)), None)
        if nested is not None:
            raise EffprofError(
                f"`{family}` joins several models; only its parts could be counted",
                f"Give the language model's own config (here under `{nested}`) for the text side alone.",
            )
        raise EffprofError(
            f"unknown model_type `{family}`", f"Known: {', '.join(sorted(known))}. For others pass `flops_per_step=`."
        )
    values = dict(config)
    if image_size is not None:
        if image_size <= 0:
            raise EffprofError(f"--image-size is {image_size}; an image has at least one pixel")
        if "image_size" not in values and "patch_size" not in values:
            raise EffprofError(f"`{family}` takes no images, so it has no image size")
        values["image_size"] = image_size
    return build(Config(values))
