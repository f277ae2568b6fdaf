"""A growing table of timed things, compact enough for millions of rows."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from effprof.trace.intervals import Floats, Indices


class Table:
    """Rows with a start and a duration (in the trace's unit after the collector's origin) and integer columns.

    Args:
        columns: columns of 64-bit numbers.
        small: columns of indices into what the collector holds, 32 bits each.
    """

    def __init__(self, *columns: str, small: Sequence[str] = ()) -> None:
        self._start, self._duration = array("d"), array("d")
        self.columns = {name: array("q") for name in columns} | {name: array("i") for name in small}

    def __len__(self) -> int:
        return len(self._start)

    def add_times(self, start: Floats, duration: Floats) -> None:
        """Add rows; `extend` then gives their columns."""
        self._start.frombytes(start.tobytes())
        self._duration.frombytes(duration.tobytes())

    def extend(self, **columns: Sequence[int] | npt.NDArray[np.int64]) -> None:
        for name, values in columns.items():
            column = self.columns[name]
            column.frombytes(np.asarray(values, dtype=column.typecode).tobytes())

    def starts(self, scale: float) -> Floats:
        return np.frombuffer(self._start, dtype=np.float64) * scale

    def ends(self, scale: float) -> Floats:
        ends = np.frombuffer(self._start, dtype=np.float64) + np.frombuffer(self._duration, dtype=np.float64)
        ends *= scale
        return ends

    def column(self, name: str) -> Indices:
        """A view of a column: the table must not grow after that."""
        return np.frombuffer(self.columns[name], dtype=self.columns[name].typecode)
