"""A plain PyTorch loop measured by effprof: no trainer, phases named where they happen.

python examples/plain_loop.py --steps 100
"""

from __future__ import annotations

import argparse
from itertools import islice

import torch
from gpt import GPT, GPTConfig, Windows, read_standard_library
from torch.utils.data import DataLoader

from effprof import StepProfiler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--experts", type=int, default=0, help="0 is the dense model")
    parser.add_argument("--run-dir", help="where effprof records (default: effprof_runs/<id>)")
    options = parser.parse_args()

    torch.manual_seed(1)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    config = GPTConfig(experts=options.experts)
    model = GPT(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(Windows(read_standard_library(4_000_000), config.context, seed=1), batch_size=8)

    with StepProfiler(model, run_dir=options.run_dir) as profiler:
        for index, batch in enumerate(profiler.watch(islice(loader, options.steps))):
            with profiler.phase("host_to_device"):
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            with profiler.phase("forward"):
                loss = model(**batch)
            with profiler.phase("backward"):
                loss.backward()
            with profiler.phase("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
            if index % 20 == 0:
                print(f"step {index}: loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
