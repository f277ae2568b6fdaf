"""Tables of figures: Lightning's and other tools' `metrics.csv`, a column per figure and mostly empty cells."""

from __future__ import annotations

import csv
import math

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.hparams import facts_beside
from effprof.runlog.importers.scalars import pick
from effprof.runlog.importers.table import Record, to_columns
from effprof.runlog.importers.text import read_lines, to_number

# Clocks of a table; in other logs by name every value has a time of its own.
_CLOCKS = {"wall_time": "time_s", "time": "elapsed_s"}


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
        wanted = pick(names) | {name: (column, 1.0) for name, column in _CLOCKS.items() if name in names}
        loss = next((name for name in names if "train" in name and "epoch_time" not in name), None)
        if loss is not None and not any(column == "loss" for column, _ in wanted.values()):
            wanted[loss] = ("loss", 1.0)
        records: list[Record] = []
        for row in rows:
            values = {column: to_number(row.get(name) or "") * factor for name, (column, factor) in wanted.items()}
            step = to_number(row.get("step") or "")
            if not math.isnan(step) and any(not math.isnan(value) for value in values.values()):
                records.append({"step": step, **values})
        if not records:
            raise EffprofError(f"{path}: no row of training in it", "give the metrics.csv of a training")
        log = ForeignLog(self.name, "Lightning", path, to_columns(records), facts_beside(path))
        log.notes.append(
            ("columns", "taken: " + ", ".join(f"{name} as {column}" for name, (column, _) in wanted.items()))
        )
        return log


FORMAT = MetricsTable()
