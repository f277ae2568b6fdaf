"""A growing table of timed things, compact enough for millions of rows."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from effprof.trace.intervals import Floats, Indices


class Table:
    """Rows with a start and a duration (in the trace's unit after the collector's origin) and integer columns."""

    def __init__(self, *columns: str) -> None:
        self._start, self._duration = array("d"), array("d")
        self.columns = {name: array("q") for name in columns}

    def __len__(self) -> int:
        return len(self._start)

    def add_times(self, start: Floats, duration: Floats) -> None:
        """Add rows; `extend` then gives their columns."""
        self._start.frombytes(start.tobytes())
        self._duration.frombytes(duration.tobytes())

    def extend(self, **columns: Sequence[int] | npt.NDArray[np.int64]) -> None:
        for name, values in columns.items():
            self.columns[name].frombytes(np.asarray(values, dtype=np.int64).tobytes())

    def starts(self, scale: float) -> Floats:
        return np.array(self._start, dtype=np.float64) * scale

    def ends(self, scale: float) -> Floats:
        return (np.array(self._start, dtype=np.float64) + np.array(self._duration, dtype=np.float64)) * scale

    def column(self, name: str) -> Indices:
        return np.array(self.columns[name], dtype=np.intp)
