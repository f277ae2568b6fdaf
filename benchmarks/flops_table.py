"""Writes the FLOPs table of docs/accuracy.md: closed form against operation count, tiny and full size.

    python benchmarks/flops_table.py            # prints the table and writes it between the markers in docs/accuracy.md
    python benchmarks/flops_table.py --print    # prints only

Full-size models exist only as shapes (torch's meta device), so this runs on a laptop. Exit code 1 where the two counts
are more than 0.1 % apart.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from effprof import __version__
from effprof.workload.architecture import from_hf_config
from effprof.workload.flops import counts_for, flops_model
from effprof.workload.operations import count_training_step

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "tests" / "data" / "configs"
PAGE = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- flops:begin -->", "<!-- flops:end -->"
TOLERANCE = 1e-3

# name, config of the full size, sequence length of the full size, what is smaller in the tiny one
NARROW = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**NARROW, "num_key_value_heads": 2, "vocab_size": 128}
MODELS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("GPT-2", "gpt2", 1024, {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}),
    ("Llama 3 8B (GQA, SwiGLU)", "llama-3-8b", 8192, GROUPED),
    ("Llama 3 70B", "llama-3-70b", 8192, {**GROUPED, "num_hidden_layers": 3}),
    ("Qwen3 8B (head size ≠ h/a)", "qwen3-8b", 8192, {**GROUPED, "head_dim": 32}),
    ("Mistral 7B (window 4096)", "mistral-7b", 16384, {**GROUPED, "sliding_window": 16}),
    ("Gemma 2B", "gemma-2b", 8192, {**GROUPED, "head_dim": 32, "num_key_value_heads": 1}),
    ("Mixtral 8x7B", "mixtral-8x7b", 8192, {**GROUPED, "num_local_experts": 4}),
    (
        "Qwen3-30B-A3B",
        "qwen3-30b-a3b",
        8192,
        {**GROUPED, "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    ),
    (
        "DeepSeek-V3 (MLA, shared experts)",
        "deepseek-v3",
        4096,
        {
            **GROUPED,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
        },
    ),
    ("OLMoE 1B-7B", "olmoe-1b-7b", 4096, {**GROUPED, "num_experts": 8, "num_experts_per_tok": 2}),
    ("BERT base (bidirectional)", "bert-base", 512, {**NARROW, "vocab_size": 128}),
    ("ViT-B/16", "vit-base-16", 0, {**NARROW, "image_size": 32, "patch_size": 8, "num_labels": 5}),
    (
        "T5 base (encoder-decoder)",
        "t5-base",
        512,
        {"d_model": 64, "d_ff": 160, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 128},
    ),
]


@dataclass
class Row:
    """One line of the table; `expected` is the closed form, or a figure derived by hand."""

    name: str
    size: str
    parameters: str
    length: str
    expected: float
    counted: int
    expected_s: float
    counted_s: float

    @property
    def difference(self) -> float:
        return self.counted / self.expected - 1


def transformers_rows() -> Iterator[Row]:
    """Every architecture, tiny with values on the CPU's device type and full size as shapes."""
    import transformers

    transformers.logging.set_verbosity_error()
    for name, file, length, tiny in MODELS:
        full = json.loads((CONFIGS / f"{file}.json").read_text())
        for size, values, seq, samples in (("tiny", {**full, **tiny}, 64, 2), ("full", full, length, 1)):
            config = transformers.AutoConfig.for_model(**values)
            with torch.device("cpu" if size == "tiny" else "meta"):
                model = getattr(transformers, full["architectures"][0])(config)
                batch = _batch(config, samples, seq)
            yield _compare(name, size, values, model, batch, samples, seq)


def _batch(config: Any, samples: int, seq: int) -> dict[str, torch.Tensor]:
    if config.model_type == "vit":
        labels = torch.zeros(samples, dtype=torch.long)
        return {"pixel_values": torch.empty(samples, 3, config.image_size, config.image_size), "labels": labels}
    ids = torch.zeros(samples, seq, dtype=torch.long)
    labels = torch.zeros(samples, seq // 4, dtype=torch.long) if config.model_type == "t5" else ids
    return {"input_ids": ids, "labels": labels}


def _compare(
    name: str, size: str, values: dict[str, Any], model: Any, batch: dict[str, torch.Tensor], samples: int, seq: int
) -> Row:
    start = time.perf_counter()
    architecture = from_hf_config(values)
    counts = counts_for(architecture, samples, seq, seq // 4)
    closed = flops_model(architecture).evaluate(counts)
    seconds = time.perf_counter() - start
    assert closed is not None
    assert model.num_parameters() == architecture.parameters_total, name
    counted = count_training_step(model, batch)
    length = f"{architecture.positions_per_sample} patches" if architecture.positions_per_sample else f"{seq:,}"
    if architecture.is_encoder_decoder:
        length = f"{seq} + {seq // 4}"
    parameters = _billions(architecture.parameters_total)
    if architecture.parameters_active != architecture.parameters_total:
        parameters += f" / {_billions(architecture.parameters_active)}"
    return Row(name, size, parameters, f"{samples} × {length}", closed, counted.flops, seconds, counted.seconds)


class Bottleneck(nn.Module):
    """ResNet's block: 1×1, 3×3 (grouped where asked), 1×1, and a projection where the shape changes."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


RESNET_STAGES = ((3, 1), (4, 2), (6, 2), (3, 2))


def resnet(width: int, groups: int, *, depthwise: bool = False) -> nn.Module:
    """ResNet-50 (width 64, one group), ResNeXt-50 (width 128, 32 groups), or one with depthwise 3×3 convolutions."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for stage, (blocks, stride) in enumerate(RESNET_STAGES):
        inner, outputs = width * 2**stage, 256 * 2**stage
        for block in range(blocks):
            count = inner if depthwise else groups
            layers.append(Bottleneck(inputs, inner, outputs, stride if block == 0 else 1, count))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def resnet_by_hand(side: int, width: int, groups: int, *, depthwise: bool = False) -> int:
    """Training FLOPs per image from the architecture's table alone: 3 × forward, 2 × for the first convolution."""
    side //= 2
    first = side * side * 64 * 3 * 49
    side //= 2
    rest, inputs = 0, 64
    for stage, (blocks, stride) in enumerate(RESNET_STAGES):
        inner, outputs = width * 2**stage, 256 * 2**stage
        for block in range(blocks):
            before, side = side, side // (stride if block == 0 else 1)
            per_filter = 1 if depthwise else inner // groups
            rest += before * before * inputs * inner + side * side * (inner * per_filter * 9 + inner * outputs)
            rest += side * side * inputs * outputs if inputs != outputs or (block == 0 and stride > 1) else 0
            inputs = outputs
    return 2 * (2 * first + 3 * (rest + inputs * 1000))


def convolution_rows() -> Iterator[Row]:
    """Plain, grouped and depthwise convolutions against a derivation by hand."""
    kinds: list[tuple[str, int, int, bool]] = [
        ("ResNet-50 (convolutions)", 64, 1, False),
        ("ResNeXt-50 32x4d (grouped)", 128, 32, False),
        ("ResNet-50, depthwise 3×3", 64, 1, True),
    ]
    for name, width, groups, depthwise in kinds:
        for size, side, samples in (("tiny", 64, 2), ("full", 224, 8)):
            with torch.device("meta"):
                network = resnet(width, groups, depthwise=depthwise)
                batch = torch.empty(samples, 3, side, side)
            start = time.perf_counter()
            expected = samples * resnet_by_hand(side, width, groups, depthwise=depthwise)
            seconds = time.perf_counter() - start
            counted = count_training_step(network, batch)
            parameters = _billions(sum(each.numel() for each in network.parameters()))
            length = f"{samples} × {side}²"
            yield Row(name, size, parameters, length, expected, counted.flops, seconds, counted.seconds)


def partly_trained_rows() -> Iterator[Row]:
    """Llama with its lower half frozen, and with LoRA adapters: products that are not computed do not count."""
    import transformers

    full = json.loads((CONFIGS / "llama-3-8b.json").read_text())
    for size, values, seq, samples in (("tiny", {**full, **GROUPED}, 64, 2), ("full", full, 8192, 1)):
        for name, prepare in (("Llama, lower half frozen", _freeze_lower_half), ("Llama, LoRA r=8 on q and v", _adapt)):
            config = transformers.AutoConfig.for_model(**values)
            with torch.device("cpu" if size == "tiny" else "meta"):
                model = transformers.LlamaForCausalLM(config)
                batch = _batch(config, samples, seq)
                start = time.perf_counter()
                model, per_token, per_pair = prepare(model, config)
            expected = samples * (per_token * seq + per_pair * (seq * (seq + 1) // 2))
            seconds = time.perf_counter() - start
            counted = count_training_step(model, batch)
            trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
            parameters = f"{_billions(sum(each.numel() for each in model.parameters()))}, {_billions(trained)} trained"
            yield Row(name, size, parameters, f"{samples} × {seq:,}", expected, counted.flops, seconds, counted.seconds)


def _llama_matrices(config: Any) -> tuple[int, int, int]:
    """Parameters in a layer's q and v, in all of its matrices, and in the head."""
    head_size = config.hidden_size // config.num_attention_heads
    keys = config.hidden_size * config.num_key_value_heads * head_size
    layer = 2 * config.hidden_size**2 + 2 * keys + 3 * config.hidden_size * config.intermediate_size
    return config.hidden_size**2 + keys, layer, config.hidden_size * config.vocab_size


def _freeze_lower_half(model: Any, config: Any) -> tuple[Any, int, int]:
    """Frozen layers at the bottom cost their forward only: no gradient passes through them."""
    _, layer, head = _llama_matrices(config)
    frozen = config.num_hidden_layers // 2
    model.model.embed_tokens.requires_grad_(False)
    for each in model.model.layers[:frozen]:
        each.requires_grad_(False)
    trained = config.num_hidden_layers - frozen
    per_token = 2 * frozen * layer + 6 * (trained * layer + head)
    return model, per_token, 4 * config.hidden_size * (frozen + 3 * trained)


def _adapt(model: Any, config: Any) -> tuple[Any, int, int]:
    """Frozen matrices cost forward and input gradient, adapters all three; nothing flows below the first q and v."""
    from peft import LoraConfig, get_peft_model

    rank = 8
    keys = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    _, layer, head = _llama_matrices(config)
    adapters = rank * (2 * config.hidden_size + config.hidden_size + keys)
    adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))
    per_token = 4 * (config.num_hidden_layers * layer + head) + 6 * config.num_hidden_layers * adapters
    first = config.hidden_size**2 + 2 * config.hidden_size * keys + 2 * rank * config.hidden_size
    # in the first layer keys need no gradient at all: one of the four products of attention's backward pass falls away
    per_pair = 12 * config.hidden_size * config.num_hidden_layers - 2 * config.hidden_size
    return adapted, per_token - 2 * first, per_pair


def _billions(number: float) -> str:
    return f"{number / 1e9:,.2f}B" if number >= 1e9 else f"{number / 1e6:,.2f}M"


def render(rows: list[Row]) -> str:
    """The section between the markers."""
    import transformers

    table = [
        [
            row.name,
            row.size,
            row.parameters,
            row.length,
            f"{row.expected:.6e}",
            f"{row.counted:.6e}",
            f"{row.difference:+.4%}",
            f"{row.expected_s * 1e3:.1f} ms",
            f"{row.counted_s:.2f} s",
        ]
        for row in rows
    ]
    headers = [
        "model",
        "size",
        "parameters (total / active)",
        "samples × length",
        "closed form",
        "operation count",
        "difference",
        "form took",
        "count took",
    ]
    worst = max(abs(row.difference) for row in rows)
    versions = f"effprof {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    return "\n".join(
        [
            BEGIN,
            "<!-- written by benchmarks/flops_table.py; do not edit by hand -->",
            "",
            "Training FLOPs of one micro-batch (forward and backward, a multiply-add is two). The closed form is made",
            "from the config alone; for convolutions, frozen layers and LoRA it is a derivation by hand in the script.",
            "The operation count runs the real `transformers` model on fake tensors. Full sizes exist only as shapes.",
            "",
            tabulate(table, headers, tablefmt="github", disable_numparse=True),
            "",
            f"Largest difference: {worst:.4%} (allowed: {TOLERANCE:.1%}). Command: `python benchmarks/flops_table.py`;",
            f"{versions}, Python {platform.python_version()}, {platform.machine()}, {torch.get_num_threads()} threads.",
            END,
        ]
    )


def write(section: str) -> None:
    """Put the section between the markers of docs/accuracy.md; the page is made where it does not exist."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"# Accuracy\n\n## FLOPs\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text:
        text = text.rstrip() + f"\n\n## FLOPs\n\n{BEGIN}\n{END}\n"
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(head + section + tail, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--print", action="store_true", help="print the table, leave docs/accuracy.md as it is")
    arguments = parser.parse_args()
    sources: list[Callable[[], Iterator[Row]]] = [transformers_rows, convolution_rows, partly_trained_rows]
    rows = []
    for source in sources:
        for row in source():
            print(f"{row.name} {row.size}: {row.difference:+.4%} {row.counted_s:.1f} s", file=sys.stderr, flush=True)
            rows.append(row)
    section = render(rows)
    print(section)
    if not arguments.print:
        write(section)
    return 0 if all(abs(row.difference) <= TOLERANCE for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
