"""Writes the memory table of docs/accuracy.md: closed form and fake copy against what was really live.

    python benchmarks/memory_table.py            # prints the table and writes it into docs/accuracy.md
    python benchmarks/memory_table.py --print    # prints only

One micro-batch of small real models, forward and backward; the live tracker follows every tensor. Exit code 1 where
a prediction is further from it than is allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from effprof import __version__
from effprof.workload.memory import Plan, predict_memory
from effprof.workload.memory_fake import rehearse_memory
from effprof.workload.memory_live import LiveMemory, LiveTensors

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"
BEGIN, END = "<!-- memory:begin -->", "<!-- memory:end -->"
FORM_TOLERANCE, COPY_TOLERANCE = 0.05, 0.001
BATCH, LENGTH = 4, 128
GROUPED = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 2000,
    "max_position_embeddings": LENGTH,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_GPT2 = {"n_embd": 128, "n_layer": 4, "n_head": 8, "n_positions": LENGTH, "vocab_size": 2000, "use_cache": False}
SMALL_VIT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    name: str
    family: str
    precision: str = "32-true"
    attention: str = "sdpa"
    is_recomputed: bool = False


CASES = (
    Case("Llama", "Llama"),
    Case("Llama", "Llama", "bf16-mixed"),
    Case("Llama", "Llama", "bf16-true"),
    Case("Llama", "Llama", "bf16-mixed", "eager"),
    Case("Llama", "Llama", "bf16-mixed", is_recomputed=True),
    Case("Qwen3", "Qwen3", "bf16-mixed"),
    Case("Mixtral", "Mixtral"),
    Case("Mixtral", "Mixtral", "bf16-mixed"),
    Case("GPT-2", "GPT2"),
    Case("GPT-2", "GPT2", "bf16-mixed"),
    Case("ViT", "ViT"),
    Case("ViT", "ViT", "bf16-mixed"),
    Case("conv net", "conv"),
    Case("conv net", "conv", "bf16-mixed"),
)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", GROUPED),
    "Qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "Mixtral": ("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}),
    "GPT2": ("GPT2LMHeadModel", {**SMALL_GPT2, "bos_token_id": 1, "eos_token_id": 2, "loss_type": "ForCausalLM"}),
    "ViT": ("ViTForImageClassification", {**SMALL_VIT, "image_size": 64, "patch_size": 8}),
}


class ConvNet(nn.Module):
    """Convolutions with batch norm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(first, second, 3, 2, 1), nn.BatchNorm2d(second), nn.ReLU())
                for first, second in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(64, 10)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(self.head(self.body(pixel_values).mean((2, 3))), labels)}


def make(case: Case) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, Any] | None]:
    """The model in training, one micro-batch and, where it has one, its config."""
    torch.manual_seed(0)
    images = {"pixel_values": torch.randn(BATCH, 3, 64, 64), "labels": torch.zeros(BATCH, dtype=torch.long)}
    if case.family == "conv":
        return ConvNet(), images, None
    import transformers

    name, values = MODELS[case.family]
    config = getattr(transformers, f"{case.family}Config")(**values)
    config._attn_implementation = case.attention
    model = getattr(transformers, name)(config).train()
    if case.precision == "bf16-true":
        model = model.bfloat16()
    if case.is_recomputed:
        model.gradient_checkpointing_enable()
    if case.family == "ViT":
        return model, images, {**config.to_dict(), "architectures": [name]}
    ids = torch.randint(3, values["vocab_size"], (BATCH, LENGTH))
    return model, {"input_ids": ids, "labels": ids}, {**config.to_dict(), "architectures": [name]}


def context_of(case: Case) -> Callable[[], Any]:
    """Autocast, where the case trains in mixed precision."""
    if case.precision == "bf16-mixed":
        return lambda: torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext


def track(model: nn.Module, batch: dict[str, torch.Tensor], case: Case) -> LiveMemory:
    """One real micro-batch, every tensor followed."""
    live = LiveTensors(model.parameters())
    live.know([*model.parameters(), *model.buffers(), *batch.values()])
    with live:
        with context_of(case)():
            loss = model(**batch)["loss"]
        loss.backward()
    return live.result()


def rows() -> Iterator[tuple[list[str], bool]]:
    """Table rows, each with whether its predictions are close enough."""
    for case in CASES:
        model, batch, config = make(case)
        rehearsed = rehearse_memory(model, batch, context=context_of(case)).live
        live = track(model, batch, case)
        forecast = None
        if config is not None:
            recompute = "full" if case.is_recomputed else "none"
            plan = Plan(BATCH, LENGTH, case.precision, attention=case.attention, recompute=recompute, device_type="cpu")
            forecast = predict_memory(config, plan)
        kept = None if forecast is None else forecast.activations_bytes
        peak = None
        if forecast is not None and forecast.peak_bytes is not None:
            peak = forecast.peak_bytes - forecast.parameters_bytes - forecast.optimizer_bytes
        how = [
            case.precision,
            case.attention if case.family != "conv" else "",
            "recompute" if case.is_recomputed else "",
        ]
        cells = [f"{case.name}, {', '.join(word for word in how if word)}", _mebibytes(live.kept_bytes)]
        cells += [_difference(kept, live.kept_bytes), _difference(rehearsed.kept_bytes, live.kept_bytes)]
        cells += [_mebibytes(live.peak_bytes), _difference(peak, live.peak_bytes)]
        cells += [_difference(rehearsed.peak_bytes, live.peak_bytes)]
        yield cells, _is_close(live, rehearsed, kept, peak)


def _is_close(live: LiveMemory, rehearsed: LiveMemory, kept: int | None, peak: int | None) -> bool:
    pairs = [
        (rehearsed.kept_bytes, live.kept_bytes, COPY_TOLERANCE),
        (rehearsed.peak_bytes, live.peak_bytes, COPY_TOLERANCE),
        (kept, live.kept_bytes, FORM_TOLERANCE),
        (peak, live.peak_bytes, FORM_TOLERANCE),
    ]
    return all(abs(found / truth - 1) <= allowed for found, truth, allowed in pairs if found is not None)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.2f}"


def _difference(found: int | None, truth: int) -> str:
    return "–" if found is None else f"{found / truth - 1:+.2%}"


def main() -> int:
    """Print the table, and write it into the page unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="do not write docs/accuracy.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = list(rows())
    heads = ["model", "kept, MiB", "closed form", "fake copy", "peak, MiB", "closed form", "fake copy"]
    align = ("left", *["right"] * 6)
    text = tabulate(
        [cells for cells, _ in found], headers=heads, tablefmt="pipe", disable_numparse=True, colalign=align
    )
    import transformers

    versions = f"effprof {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    text += f"\n\n{versions}, Python {platform.python_version()}, CPU, {BATCH} × {LENGTH} tokens (images 64 × 64)."
    print(text)
    if not options.print:
        page = PAGE.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 0 if all(is_close for _, is_close in found) else 1


if __name__ == "__main__":
    sys.exit(main())
