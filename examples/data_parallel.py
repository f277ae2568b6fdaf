"""A plain PyTorch loop on several processes: DistributedDataParallel, one log per rank, one run directory.

    torchrun --nproc-per-node 2 examples/data_parallel.py --steps 100 --run-dir runs/two-ranks
    effprof analyze runs/two-ranks

Processes on CPUs talk through gloo, on GPUs through NCCL. `--slow-rank 1` lets that rank's loader dawdle, to see what
the report makes of it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
import torch.distributed as dist
from gpt import GPT, GPTConfig, Windows, read_standard_library
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from effprof import StepProfiler

DAWDLE_S = 0.05


def dawdling(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The same batches, each a little late."""
    for batch in batches:
        time.sleep(DAWDLE_S)
        yield batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--experts", type=int, default=0, help="0 is the dense model")
    parser.add_argument("--slow-rank", type=int, help="the rank whose loader dawdles")
    parser.add_argument("--run-dir", help="where effprof records (default: effprof_runs/<id>)")
    options = parser.parse_args()

    has_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if has_gpu else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    torch.manual_seed(1)
    config = GPTConfig(experts=options.experts)
    model = DistributedDataParallel(GPT(config).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    # a seed per rank: every rank sees other text
    text = Windows(read_standard_library(4_000_000), config.context, seed=1 + rank)
    batches: Iterable[dict[str, Tensor]] = islice(DataLoader(text, batch_size=8), options.steps)
    if rank == options.slow_rank:
        batches = dawdling(batches)

    with StepProfiler(model, optimizer=optimizer, run_dir=options.run_dir) as profiler:
        for batch in profiler.watch(batches):
            with profiler.phase("host_to_device"):
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            with profiler.phase("forward"):
                loss = model(**batch)
            with profiler.phase("backward"):
                loss.backward()
            with profiler.phase("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
