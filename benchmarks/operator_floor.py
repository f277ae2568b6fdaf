"""What an operator takes with next to no data, in units of one that touches none: the table in `window_operators`.

    python benchmarks/operator_floor.py

Small Llama and GPT-2 models run forward and backward on two tokens under the profiler, on one thread. A family's floor
is the mean of its operators' own time ÷ the median own time of operators that touch no element (views and the like).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from effprof.measure.window_operators import read_operators

WARM_UP, STEPS = 5, 5


def models() -> dict[str, Any]:
    """The models by name."""
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for hidden in (32, 128):
        sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 3}
        config = LlamaConfig(vocab_size=512, num_attention_heads=4, num_key_value_heads=4, **sizes)
        found[f"Llama, hidden {hidden}"] = LlamaForCausalLM(config)
    found["GPT-2, hidden 64"] = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=64, n_layer=3, n_head=4))
    return found


def floors(net: Any, tokens: int) -> tuple[float, dict[str, float]]:
    """(median µs of an operator without data, family → mean own time in units of it)."""
    ids = torch.randint(0, 500, (1, tokens))

    def step() -> None:
        net(input_ids=ids, labels=ids).loss.backward()

    for _ in range(WARM_UP):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        operators = read_operators(str(path)).operators
    own: dict[str, list[float]] = {}
    for operator in operators:
        own.setdefault("without data" if operator.is_dataless else operator.family, []).append(operator.own)
    dispatch = float(np.median(own["without data"]))
    return dispatch, {family: float(np.mean(times)) / dispatch for family, times in own.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    measured = {name: floors(net, given.tokens) for name, net in models().items()}
    families = sorted({family for _, found in measured.values() for family in found})
    rows = [[family, *(found.get(family) for _, found in measured.values())] for family in families]
    rows.append(["µs without data", *(dispatch for dispatch, _ in measured.values())])
    print(tabulate(rows, headers=["family", *measured], floatfmt=".2f"))


if __name__ == "__main__":
    main()
