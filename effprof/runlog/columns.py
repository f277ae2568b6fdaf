"""Step columns: joined from a log's blocks, and kept for many ranks without holding them all in memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sized
from typing import TYPE_CHECKING

import msgspec

from effprof.errors import EffprofError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Up to this many ranks the columns stay in memory: reading them back costs more than they take.
RANKS_IN_MEMORY = 16


_MAX_NS = 2.0**63
_LARGE = 512  # rows from which numpy's cost per array no longer shows
# Bytes of a line from which numpy's own parser of integers, at a fixed cost per column, beats lists of numbers.
BULK_BYTES = 16 << 10
_INTEGERS = b"0123456789,-"
_MAX_INTEGER = 2**62  # numpy's parser clips what doesn't fit its integers without a word


class StepBlock(msgspec.Struct, tag="steps", tag_field="type", kw_only=True):
    """`schema.Steps` as it is read: numbers as floats, which are made into arrays in a third of the time."""

    n: int
    columns: dict[str, list[float | None]]


class BulkBlock(msgspec.Struct, tag="steps", tag_field="type", kw_only=True):
    """`StepBlock` of many steps: the columns stay text until numpy parses them."""

    n: int
    columns: dict[str, msgspec.Raw]

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Columns as float64, NaN for null.

        Raises:
            msgspec.DecodeError: a column that holds something else than numbers and nulls.
        """
        return {name: _parse(bytes(text)) for name, text in self.columns.items()}


_floats = msgspec.json.Decoder(list[float | None])


def _parse(text: bytes) -> NDArray[np.float64]:
    import numpy as np

    # a list without any other character holds nothing but integers, as msgspec has checked the syntax already
    if len(text) > 2 and text.translate(None, _INTEGERS) == b"[]":
        values = np.fromstring(text[1:-1], dtype=np.int64, sep=",")
        if values.min() > -_MAX_INTEGER and values.max() < _MAX_INTEGER:
            found: NDArray[np.float64] = values.astype(np.float64)
            return found
    return np.array(_floats.decode(text), dtype=np.float64)


class Joiner:
    """Makes arrays of a log's blocks as they come: small blocks wait for others of the same columns.

    Args:
        path: of the log, for complaints.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._parts: list[tuple[int, dict[str, NDArray[np.float64]]]] = []
        self._waiting: dict[str, list[float | None]] = {}
        self._rows = 0

    def add(self, block: StepBlock) -> None:
        """Take the next block.

        Raises:
            EffprofError: a column of another length than its block.
        """
        self._check_lengths(block.n, block.columns)
        if self._rows and (block.n >= _LARGE or self._waiting.keys() != block.columns.keys()):
            self._release()
        if not self._rows:
            self._waiting, self._rows = block.columns, block.n
        else:
            for name, values in block.columns.items():
                self._waiting[name] += values
            self._rows += block.n
        if self._rows >= _LARGE:
            self._release()

    def add_arrays(self, n: int, columns: dict[str, NDArray[np.float64]]) -> None:
        """Take the next block, of `n` steps, as arrays of shape (n,).

        Raises:
            EffprofError: a column of another length than its block.
        """
        self._check_lengths(n, columns)
        self._release()
        self._parts.append((n, columns))

    def _check_lengths(self, n: int, columns: Mapping[str, Sized]) -> None:
        for name, values in columns.items():
            if len(values) != n:
                message = f"{self._path}: column {name} is shorter or longer than its block"
                raise EffprofError(message, "record the run again")

    def extend(self, other: Joiner) -> None:
        """Append what another segment's joiner holds."""
        self._release()
        other._release()
        self._parts += other._parts

    def _release(self) -> None:
        import numpy as np

        if self._rows:
            columns = {name: np.array(values, dtype=np.float64) for name, values in self._waiting.items()}
            self._parts.append((self._rows, columns))
            self._waiting, self._rows = {}, 0

    def join(self) -> dict[str, NDArray[np.float64]]:
        """Columns over all blocks, NaN where a block has null or lacks the column.

        Raises:
            EffprofError: a time that is negative, not finite or out of order.
        """
        import numpy as np

        self._release()
        names = dict.fromkeys(name for _, part in self._parts for name in part)
        columns = {
            name: np.concatenate([part[name] if name in part else np.full(n, np.nan) for n, part in self._parts])
            for name in names
        }
        _check_times(columns, self._path)
        if self._parts and "end_ns" not in columns:
            raise EffprofError(f"{self._path}: its steps have no end_ns column", "record the run again")
        return columns


def _check_times(columns: Mapping[str, NDArray[np.float64]], path: str) -> None:
    import numpy as np

    for name, values in columns.items():
        if not name.endswith("_ns"):
            continue
        present = values[~np.isnan(values)]
        is_optional = name not in ("end_ns",)
        if (not is_optional and len(present) < len(values)) or np.any(present < 0) or np.any(present >= _MAX_NS):
            raise bad_time(f"{path}: {name} holds a time that is negative or not finite")
    if "end_ns" in columns and np.any(np.diff(columns["end_ns"]) < 0):
        raise bad_time(f"{path}: steps are out of order in time")


def bad_time(what: str) -> EffprofError:
    """The refusal of a log with an impossible time."""
    return EffprofError(what, "the log was altered or its clock is broken: remove the line, or record the run again")


def length_of(columns: Mapping[str, NDArray[np.float64]]) -> int:
    """Number of steps in a rank's columns."""
    if isinstance(columns, FiledColumns):
        return columns.length()
    return len(columns["end_ns"]) if "end_ns" in columns else 0


class ColumnFile:
    """Takes columns and gives back a mapping that reads each one from the file, as a fresh array, when it is used."""

    def __init__(self) -> None:
        self._descriptor, path = tempfile.mkstemp(prefix="effprof-columns-")
        os.unlink(path)  # it goes with the last of its columns, whatever happens to this process
        self._end = 0
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)

    def put(self, columns: Mapping[str, NDArray[np.float64]]) -> FiledColumns:
        """Write `columns` (float64, one length) to the end of the file.

        Raises:
            OSError: the temporary directory is full.
        """
        places = {}
        for name, values in columns.items():
            data = memoryview(values.tobytes())
            places[name] = (self._end, len(values))
            while data:
                written = os.pwrite(self._descriptor, data, self._end)
                self._end += written
                data = data[written:]
        return FiledColumns(self, places)

    def read(self, start: int, length: int) -> NDArray[np.float64]:
        """`length` values from byte `start` on."""
        import numpy as np

        values = np.empty(length)
        view = memoryview(values.data).cast("B")
        done = 0
        while done < len(view):
            done += os.preadv(self._descriptor, [view[done:]], start + done)
        return values


class FiledColumns(Mapping[str, "NDArray[np.float64]"]):
    """The columns of one rank, in a `ColumnFile`."""

    def __init__(self, file: ColumnFile, places: dict[str, tuple[int, int]]) -> None:
        self._file = file
        self._places = places

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self._file.read(*self._places[name])

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __reduce__(self) -> tuple[type[dict[str, NDArray[np.float64]]], tuple[dict[str, NDArray[np.float64]]]]:
        # in another process they are arrays: the file is this one's
        return dict, (dict(self),)

    def __len__(self) -> int:
        return len(self._places)

    def length(self) -> int:
        """Number of values in each column."""
        return next((length for _, length in self._places.values()), 0)
