"""Times the counting of one micro-batch on the host: python benchmarks/token_count.py [--rows 8] [--columns 1024].

Prints microseconds (median and 99th percentile) for batches whose shape says everything, with a padding mask, with
labels, and packed. The design allows 50 µs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from effprof.measure import tokens
from effprof.measure.tokens import TokenCounter


def make_batches(rows: int, columns: int) -> dict[str, Any]:
    """One batch of (rows, columns) per case."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (rows, columns), generator=generator)
    lengths = torch.randint(columns // 2, columns, (rows, 1), generator=generator)
    mask = (torch.arange(columns)[None, :] < lengths).long()
    labels = ids.masked_fill(mask == 0, -100)
    document = columns // 4
    position_ids = (torch.arange(columns) % document).expand(rows, columns).contiguous()
    cumulative = torch.arange(0, rows * columns + 1, document)
    return {
        "shape only": {"input_ids": ids},
        "bare tensor": ids,
        "full mask": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "padding mask": {"input_ids": ids, "attention_mask": mask},
        "labels": {"input_ids": ids, "labels": labels},
        "mask + labels": {"input_ids": ids, "attention_mask": mask, "labels": labels},
        "plain position ids": {"input_ids": ids, "position_ids": torch.arange(columns).expand(rows, columns)},
        "packed position ids": {"input_ids": ids, "position_ids": position_ids, "labels": labels},
        "packed cu_seqlens": {"input_ids": ids.reshape(1, -1), "cu_seq_lens_q": cumulative},
        "packed document ids": {"input_ids": ids, "document_ids": torch.arange(columns).expand_as(ids) // document},
        "images": {"pixel_values": torch.zeros(rows, 3, 8, 8), "labels": torch.zeros(rows, dtype=torch.long)},
    }


def time_counting(batch: Any, repeats: int) -> tuple[float, float]:
    """(median, 99th percentile) in µs of one batch through submit and poll."""
    tokens.BUDGET_SHARE = 1.0  # batches come back to back here: without this, counting would thin itself out
    counter = TokenCounter(causal=True, window=128, pad_id=0)
    taken = np.empty(repeats)
    for index in range(repeats + 100):
        began_ns = time.perf_counter_ns()
        counter.submit(batch, index)
        counter.poll()
        if index >= 100:
            taken[index - 100] = time.perf_counter_ns() - began_ns
    return float(np.median(taken)) / 1e3, float(np.percentile(taken, 99)) / 1e3


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.rows} x {arguments.columns} positions, µs a batch{'':6} median      p99")
    for name, batch in make_batches(arguments.rows, arguments.columns).items():
        median, p99 = time_counting(batch, arguments.repeats)
        print(f"{name:36} {median:10.1f} {p99:8.1f}")


if __name__ == "__main__":
    main()
