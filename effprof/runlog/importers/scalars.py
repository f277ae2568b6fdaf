"""Figures that training tools log by name, to TensorBoard, Weights & Biases or a CSV: which name is which column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.table import Record, to_columns

Kept = dict[float, tuple[float, float]]
_GIB = float(1 << 30)
# Name → (column, factor to its unit). Of names for the same column the first that a log has is taken.
KNOWN: Mapping[str, tuple[str, float]] = {
    # effprof's own and Lightning's monitors
    "effprof/mfu": ("mfu", 1),
    "effprof/tokens_per_s": ("tokens_per_s", 1),
    "effprof/tokens_per_s_per_device": ("tokens_per_s_per_device", 1),
    "effprof/step_time_s": ("step_time_s", 1),
    "device/mfu": ("mfu", 1),
    "device/items_per_sec": ("tokens_per_s_per_device", 1),
    # torchtitan
    "throughput(tps)": ("tokens_per_s_per_device", 1),
    "mfu(%)": ("mfu", 0.01),
    "tflops": ("tflops_per_device", 1),
    "time_metrics/end_to_end(s)": ("step_time_s", 1),
    "time_metrics/data_loading(s)": ("input_wait_s", 1),
    "memory/max_reserved(GiB)": ("memory_bytes", _GIB),
    # Megatron-LM, NeMo, nanotron
    "iteration-time": ("step_time_s", 1),
    "throughput": ("tflops_per_device", 1),
    "batch-size": ("samples", 1),
    "train_step_timing in s": ("step_time_s", 1),
    "consumed_samples": ("consumed_samples", 1),
    "elapsed_time_per_iteration_ms": ("step_time_s", 1e-3),
    "model_tflops_per_gpu": ("tflops_per_device", 1),
    "tokens_per_sec_per_gpu": ("tokens_per_s_per_device", 1),
    "global_batch_size": ("samples", 1),
    # Composer and LLM Foundry
    "throughput/device/tokens_per_sec": ("tokens_per_s_per_device", 1),
    "throughput/tokens_per_sec": ("tokens_per_s", 1),
    "throughput/device/mfu": ("mfu", 1),
    # transformers' Trainer
    "train/num_input_tokens_seen": ("consumed_tokens", 1),
    # home-made
    "tokens_per_sec": ("tokens_per_s", 1),
    "tokens_per_second": ("tokens_per_s", 1),
    "iter_time": ("step_time_s", 1),
    "step_time": ("step_time_s", 1),
    "mfu": ("mfu", 1),
}
# The training loss goes by these names, best first.
LOSSES = (
    *("train_loss_step", "train/loss_step", "train/loss", "train_loss", "loss", "lm loss", "lm_loss"),
    *("Loss/train", "loss/train", "loss/train/total", "Train/Loss", "reduced_train_loss"),
    *("loss_metrics/global_avg_loss", "train_loss_epoch"),
)


def pick(names: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Of a log's names those that are known → column and factor, one name a column."""
    chosen: dict[str, tuple[str, float]] = {}
    taken: set[str] = set()
    for name in (name for name in KNOWN if name in names):
        column, factor = KNOWN[name]
        if column not in taken:
            taken.add(column)
            chosen[name] = (column, factor)
    loss = next((name for name in LOSSES if name in names), None)
    if loss is not None:
        chosen[loss] = ("loss", 1)
    return chosen


def log_of(
    form: str,
    framework: str,
    path: str,
    series: Mapping[str, Iterable[tuple[float, float, float]]],
) -> ForeignLog:
    """A log out of named series of (step, Unix time, value); of a step that a series holds twice the later one counts.

    The time of a record is that of the first value that was logged for its step. Where no name is known, the longest
    series gives steps and times alone: what it measures is not guessed.
    """
    chosen = pick(list(series))
    kept: dict[str, Kept] = {}
    repeated: set[float] = set()
    for name in chosen or series:
        kept[name] = _later_ones(series[name], repeated)
    if not chosen:
        longest = max(kept, key=lambda name: len(kept[name]))
        kept = {longest: kept[longest]}
    rows: dict[float, Record] = {}
    for name, values in kept.items():
        for step, (time_s, value) in values.items():
            row = rows.setdefault(step, {"step": step, "time_s": time_s})
            row["time_s"] = min(row["time_s"], time_s)
            if name in chosen:
                column, factor = chosen[name]
                row[column] = value * factor
    log = ForeignLog(form, framework, path, to_columns(rows[step] for step in sorted(rows)), repeated=len(repeated))
    taken = ", ".join(f"{name} as {column}" for name, (column, _) in chosen.items())
    unknown = f"steps and times alone, of {next(iter(kept))}: no name in it is known"
    log.notes.append(("columns", f"taken: {taken or unknown}"))
    return log


def _later_ones(values: Iterable[tuple[float, float, float]], repeated: set[float]) -> Kept:
    """Step → (Unix time, value) in the order of the steps; what a later value replaces goes into `repeated`."""
    kept: Kept = {}
    for step, time_s, value in values:
        while kept and step <= next(reversed(kept)):  # the job went back, or its writer repeats itself
            repeated.add(kept.popitem()[0])
        kept[step] = (time_s, value)
    return kept
