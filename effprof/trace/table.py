"""A growing table of timed things, compact enough for millions of rows."""

from __future__ import annotations

from array import array

import numpy as np

from effprof.trace.intervals import Floats, Indices


class Table:
    """Rows with a start and a duration (in the trace's unit after the collector's origin) and integer columns."""

    def __init__(self, *columns: str) -> None:
        self.start, self.duration = array("d"), array("d")
        self.columns = {name: array("q") for name in columns}

    def __len__(self) -> int:
        return len(self.start)

    def starts(self, scale: float) -> Floats:
        return np.array(self.start, dtype=np.float64) * scale

    def ends(self, scale: float) -> Floats:
        return (np.array(self.start, dtype=np.float64) + np.array(self.duration, dtype=np.float64)) * scale

    def column(self, name: str) -> Indices:
        return np.array(self.columns[name], dtype=np.intp)
