"""What autograd's anomaly detection adds per operator on a CPU, in units of one that touches no data.

    python benchmarks/anomaly_cost.py

The figures behind the gain of the rule `ker-anomaly`: forward and backward of small models on one thread with and
without it, called directly and from 25 frames further down, as a Trainer calls them: its traces are that much longer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from effprof.measure.window_operators import read_operators

STEPS = 10
DEPTHS = (0, 25)


def cases() -> list[tuple[str, Any, dict[str, torch.Tensor]]]:
    """Name, model and batch."""

    def text(rows: int, length: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 500, (rows, length))
        return {"input_ids": ids, "labels": ids}

    def llama(hidden: int) -> Any:
        sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 3}
        return LlamaForCausalLM(LlamaConfig(vocab_size=512, num_attention_heads=4, num_key_value_heads=4, **sizes))

    gpt2 = GPT2Config(vocab_size=512, n_embd=128, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0)
    vit = ViTConfig(
        hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192, image_size=64, patch_size=16
    )
    images = {"pixel_values": torch.randn(4, 3, 64, 64), "labels": torch.tensor([0, 1, 0, 1])}
    return [
        ("Llama 32 wide, 2 × 16", llama(32), text(2, 16)),
        ("Llama 128 wide, 16 × 64", llama(128), text(16, 64)),
        ("Llama 256 wide, 4 × 64", llama(256), text(4, 64)),
        ("GPT-2 128 wide, 8 × 64", GPT2LMHeadModel(gpt2), text(8, 64)),
        ("ViT 96 wide, 4 images", ViTForImageClassification(vit), images),
    ]


def called_from(depth: int, step: Callable[[], None]) -> None:
    """Call `step` from `depth` frames further down."""
    if depth:
        called_from(depth - 1, step)
    else:
        step()


def seconds(step: Callable[[], None]) -> float:
    """Median time of a step behind three that warm up."""
    times = []
    for _ in range(STEPS + 3):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return float(np.median(times[3:]))


def operators(step: Callable[[], None]) -> tuple[int, float]:
    """How many operators a step calls, and the median µs of one that touches no data."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        found = read_operators(str(path)).operators
    return len(found), float(np.median([each.own for each in found if each.is_dataless]))


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = []
    for name, net, batch in cases():

        def step(net: Any = net, batch: dict[str, torch.Tensor] = batch) -> None:
            net(**batch).loss.backward()
            net.zero_grad()

        plain = seconds(step)
        for depth in DEPTHS:
            with torch.autograd.set_detect_anomaly(True):
                slow = seconds(lambda depth=depth: called_from(depth, step))  # type: ignore[misc]
                count, dispatch = operators(lambda depth=depth: called_from(depth, step))  # type: ignore[misc]
            each = 1e6 * (slow - plain) / count
            table.append([name, depth, 1e3 * plain, 1e3 * slow, count, dispatch, each, each / dispatch])
    heads = ["model", "frames", "ms", "with it", "operators", "µs without data", "µs added", "in units"]
    print(tabulate(table, headers=heads, floatfmt=".3g"))


if __name__ == "__main__":
    main()
