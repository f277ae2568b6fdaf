"""Expert products of a transformers model one by one against grouped, in whole training steps on this machine.

    python benchmarks/experts.py

The figures behind the gain of the rule `moe-grouped-gemm` on a CPU: small Mixtral models, the two implementations
interleaved in random order, medians over the rounds.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

ROUNDS = 8
# experts, experts per token, hidden size, expert size, layers, sequences of 128 tokens
SHAPES = ((8, 2, 512, 1024, 1, 16), (16, 2, 256, 512, 1, 16), (8, 2, 256, 512, 2, 4), (16, 2, 128, 256, 2, 8),
          (32, 4, 256, 128, 2, 8), (32, 2, 256, 512, 1, 8), (64, 4, 128, 64, 2, 4))  # fmt: skip
TOKENS = 128


def model_of(shape: tuple[int, ...], implementation: str) -> tuple[Any, torch.Tensor]:
    """A model with its experts in one implementation, and a batch; equal for all implementations."""
    experts, chosen, hidden, size, layers, sequences = shape
    torch.manual_seed(0)
    config = MixtralConfig(
        num_local_experts=experts,
        num_experts_per_tok=chosen,
        hidden_size=hidden,
        intermediate_size=size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=1000,
    )
    model = MixtralForCausalLM(config)
    model.set_experts_implementation(implementation)
    return model, torch.randint(0, 1000, (sequences, TOKENS))


def seconds_of_a_step(model: Any, batch: torch.Tensor) -> float:
    """One forward and backward pass."""
    start = time.perf_counter()
    model(input_ids=batch, labels=batch).loss.backward()
    model.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    """Prints one line per shape."""
    print("experts  hidden  size  tokens/expert  one by one [ms]  grouped [ms]    gain")
    for shape in SHAPES:
        models = {name: model_of(shape, name) for name in ("eager", "grouped_mm")}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for number in range(ROUNDS):
            for name in random.sample(list(models), len(models)):
                taken = seconds_of_a_step(*models[name])
                if number:  # the first step allocates
                    seconds[name].append(taken)
        eager, grouped = (statistics.median(seconds[name]) * 1e3 for name in ("eager", "grouped_mm"))
        experts, chosen, hidden, size, _, sequences = shape
        tokens = sequences * TOKENS * chosen // experts
        print(
            f"{experts:7d} {hidden:7d} {size:5d} {tokens:14d} {eager:16.1f} {grouped:13.1f} {eager / grouped - 1:7.0%}"
        )


if __name__ == "__main__":
    main()
