"""What bf16 autocast brings on a CPU by the model's width: the figures behind the rule prec-bf16.

    python benchmarks/precision_cpu.py

Training steps of small transformers on one thread, fp32 and autocast in turn; medians of three times five to ten steps.
The gain is of steps per second. It depends on the width because a product of width h multiplies each element that was
cast h times: the casts' share of the products' time falls with h.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

SHAPES = ((4, 64), (16, 64), (2, 512))
WIDTHS = (64, 128, 256, 512)
ROUNDS = 3


def training_step(net: Any, batch: dict[str, torch.Tensor], is_bf16: bool) -> Callable[[], None]:
    """One optimizer step as a function."""
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16) if is_bf16 else contextlib.nullcontext():
            loss = net(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    """Median time of a step behind two that warm up."""
    times = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


def pair(name: str, net: Any, rows: tuple[int, int]) -> list[Any]:
    """A row of the table."""
    ids = torch.randint(0, 500, rows)
    batch = {"input_ids": ids, "labels": ids}
    steps = 5 if net.config.hidden_size >= 512 else 10
    full, half = training_step(net, batch, False), training_step(net, batch, True)
    times = np.median([(seconds(full, steps), seconds(half, steps)) for _ in range(ROUNDS)], axis=0)
    return [name, net.config.hidden_size, f"{rows[0]} × {rows[1]}", *(1e3 * times), times[0] / times[1] - 1]


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = []
    for width in WIDTHS:
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3}
        config = LlamaConfig(vocab_size=512, num_attention_heads=4, num_key_value_heads=4, **sizes)
        table += [pair("Llama", LlamaForCausalLM(config), rows) for rows in SHAPES]
    for width in (128, 512):
        sizes = {"n_embd": width, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
        table.append(pair("GPT-2", GPT2LMHeadModel(GPT2Config(vocab_size=512, **sizes)), (16, 64)))
    print(tabulate(table, headers=["model", "width", "batch", "fp32 ms", "bf16 ms", "gain"], floatfmt=".3g"))


if __name__ == "__main__":
    main()
