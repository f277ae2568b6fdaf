"""TensorBoard event files, through the `tensorboard` package's own reader of records."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import Any

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.hparams import facts_beside
from effprof.runlog.importers.scalars import log_of

# An event file opens with a record whose event names the format's version; before it 12 bytes of length and checksum.
_VERSION = b"brain.Event:"
_MOST_SCALARS = 20_000_000  # 24 bytes each


class EventFile:
    """Event files; scalars are told by their tags, and times are those at which they were logged.

    Those of one folder are one run, as TensorBoard has it: a restart opens another file.
    """

    name = "tensorboard"
    is_folder_one_log = True

    def score(self, head: Head) -> float:
        """The version of the format at the file's beginning."""
        return 95.0 if _VERSION in head.raw[:64] else 0.0

    def read(self, path: str) -> ForeignLog:
        """A record per step of any scalar that is known; nothing after a torn or broken event of a file is read.

        Args:
            path: a file, or a folder of which the event files are read.
        """
        notes: list[tuple[str, str]] = []
        series: dict[str, array[float]] = {}
        count = 0
        for event in chain.from_iterable(_events(file, notes) for file in _files(path)):
            if not math.isfinite(event.wall_time):
                continue
            for value in event.summary.value:
                scalar = _scalar(value)
                if scalar is None:
                    continue
                count += 1
                if count > _MOST_SCALARS:
                    raise EffprofError(f"{path}: more than {_MOST_SCALARS:,} scalars", "give a shorter run's events")
                series.setdefault(value.tag, array("d")).extend((event.step, event.wall_time, scalar))
        if not series:
            raise EffprofError(f"{path}: no scalar in it", "give the event file of a training")
        log = log_of(
            self.name, "TensorBoard", path, {tag: zip(*[iter(flat)] * 3, strict=True) for tag, flat in series.items()}
        )
        log.notes += notes
        log.facts |= facts_beside(_files(path)[0])  # Lightning's logger saves them there
        return log


def _files(path: str) -> list[str]:
    """The event files of a folder, whose names hold the time of their opening; of a file itself."""
    if not os.path.isdir(path):
        return [path]
    files = (os.path.join(path, name) for name in sorted(os.listdir(path)))
    return [file for file in files if os.path.isfile(file) and _is_event_file(file)]


def _is_event_file(path: str) -> bool:
    with open(path, "rb") as file:
        return _VERSION in file.read(64)


def _events(path: str, notes: list[tuple[str, str]]) -> Iterator[Any]:
    """The events of a file, up to one that is torn or broken, which goes into `notes`.

    The package's reader in Python is named outright: its usual entry loads tensorflow where that is installed.
    """
    try:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.tensorflow_stub import errors
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
    except ImportError as error:
        raise EffprofError(
            f"{path}: TensorBoard's event files need its package: {error}", "pip install 'effprof[tensorboard]'"
        ) from error
    reader = PyRecordReader_New(path.encode(), 0, b"", None)
    number = 0
    while True:
        try:
            reader.GetNext()
            event = Event.FromString(reader.record())
        except errors.OutOfRangeError:
            return
        except (errors.DataLossError, DecodeError, MemoryError, OverflowError):
            name = os.path.basename(path)
            notes.append(("torn_event", f"event {number + 1} of {name} is torn or broken; what follows was not read"))
            return
        number += 1
        yield event


def _scalar(value: Any) -> float | None:
    """The number of a summary's value, of old writers and of new ones; None where it is none."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind != "tensor" or value.tensor.tensor_shape.dim:
        return None
    from tensorboard.util.tensor_util import make_ndarray

    try:
        number = make_ndarray(value.tensor)
    except (TypeError, ValueError):
        return None
    return float(number) if number.dtype.kind in "fiu" and number.size == 1 else None


FORMAT = EventFile()
