"""Tables of figures: Lightning's and other tools' `metrics.csv`, a column per figure and mostly empty cells."""

from __future__ import annotations

import csv
import math

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.table import Record, to_columns
from effprof.runlog.importers.text import read_lines, to_number

# Figure of a table → column, where a tool writes more than losses; effprof's own and Lightning's monitors' names.
_KNOWN = {
    "effprof/tokens_per_s": "tokens_per_s",
    "effprof/step_time_s": "step_time_s",
    "effprof/mfu": "mfu",
    "device/batches_per_sec": "batches_per_s",
    "device/items_per_sec": "tokens_per_s_per_device",
    "device/mfu": "mfu",
    "tokens_per_sec": "tokens_per_s",
    "iter_time": "step_time_s",
    "step_time": "step_time_s",
    "wall_time": "time_s",
    "time": "elapsed_s",
}
_LOSSES = ("train_loss_step", "train_loss", "loss", "train/loss", "train_loss_epoch")


class MetricsTable:
    """CSV with a `step` column, as `CSVLogger` writes it."""

    name = "lightning-csv"

    def score(self, head: Head) -> float:
        """A first line of names, `step` and something of a loss or a known figure among them."""
        names = [name.strip() for name in head.lines[0].split(",")] if head.lines else []
        is_table = "step" in names and ("epoch" in names or any("loss" in name for name in names))
        return 50.0 if is_table and len(head.lines) > 1 else 0.0

    def read(self, path: str) -> ForeignLog:
        """A record per row that says something of training; rows of validation alone are passed over."""
        rows = csv.DictReader(read_lines(path))
        names = [name for name in rows.fieldnames or [] if name]
        loss = next((name for name in _LOSSES if name in names), next((n for n in names if "train" in n), None))
        wanted = {name: _KNOWN[name] for name in names if name in _KNOWN}
        if loss is not None:
            wanted[loss] = "loss"
        records: list[Record] = []
        for row in rows:
            values = {column: to_number(row.get(name) or "") for name, column in wanted.items()}
            step = to_number(row.get("step") or "")
            if not math.isnan(step) and any(not math.isnan(value) for value in values.values()):
                records.append({"step": step, **values})
        if not records:
            raise EffprofError(f"{path}: no row of training in it", "give the metrics.csv of a training")
        log = ForeignLog(self.name, "Lightning", path, to_columns(records))
        log.notes.append(("columns", "taken: " + ", ".join(f"{name} as {column}" for name, column in wanted.items())))
        return log


FORMAT = MetricsTable()
