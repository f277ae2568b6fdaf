"""Weights & Biases' run files: the `.wandb` record of a run, and the summary where only that is left.

A `.wandb` file is a log of LevelDB's format: a header of 7 bytes, then blocks of 32 KiB with records that open with
checksum (4 bytes), length (2) and kind (1: whole, 2 to 4: first, middle and last part). A record is a protobuf message
whose classes the `wandb` package holds; its history items are JSON.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.hparams import facts_in
from effprof.runlog.importers.scalars import KNOWN, LOSSES, log_of

_MAGIC, _HEADER, _BLOCK = b":W&B", 7, 32768
_WHOLE, _FIRST, _LAST = 1, 2, 4
_MOST_RECORD = 64 << 20
_SUMMARY_KEYS = ('"_runtime"', '"_step"')


def records(data: bytes | mmap.mmap) -> Iterator[bytes]:
    """The messages of a `.wandb` file; what is torn off at its end is left out."""
    place, parts = _HEADER, b""
    while place + 7 <= len(data):
        rest = _BLOCK - place % _BLOCK
        if rest < 7:  # too little for a record's head: padding
            place += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0 and length == 0:
            place += rest
            continue
        part = data[place + 7 : place + 7 + length]
        if len(part) < length:
            return
        place += 7 + length
        parts = part if kind in (_WHOLE, _FIRST) else parts + part
        if len(parts) > _MOST_RECORD:
            return
        if kind in (_WHOLE, _LAST):
            yield parts


class RunFile:
    """The `.wandb` record of a run: its history, by step."""

    name = "wandb"

    def score(self, head: Head) -> float:
        """The four bytes that open it."""
        return 95.0 if head.raw.startswith(_MAGIC) else 0.0

    def read(self, path: str) -> ForeignLog:
        """A record per step of any figure that is known."""
        try:
            from wandb.proto.wandb_internal_pb2 import Record
        except ImportError as error:
            raise EffprofError(f"{path}: a .wandb file needs wandb's package: {error}", "pip install wandb") from error
        series: dict[str, list[tuple[float, float, float]]] = {}
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for part in records(data):
                record = Record()
                try:
                    record.ParseFromString(part)
                except Exception:  # protobuf's errors differ between its implementations
                    continue
                if record.WhichOneof("record_type") == "history":
                    _add(series, record.history)
        if not series:
            raise EffprofError(f"{path}: no history in it", "give the .wandb file of a run that logged something")
        log = log_of(self.name, "Weights & Biases", path, series)
        _add_facts(log, Path(path).parent / "files")
        return log


class Summary:
    """`wandb-summary.json`, where the run's own record is not beside it: the last step alone."""

    name = "wandb"

    def score(self, head: Head) -> float:
        """JSON with the keys that W&B adds to every summary."""
        text = head.raw[:65536].decode("utf-8", errors="replace")
        if not text.lstrip().startswith("{") or not all(key in text for key in _SUMMARY_KEYS):
            return 0.0
        has_record = any(Path(head.path).resolve().parent.parent.glob("*.wandb"))
        return 0.0 if has_record else 90.0

    def read(self, path: str) -> ForeignLog:
        """One record."""
        try:
            summary = json.loads(Path(path).read_text(encoding="utf-8", errors="replace"))
        except (ValueError, RecursionError) as error:
            raise EffprofError(f"{path}: not whole JSON ({error})", "give the file as W&B wrote it") from None
        step, time_s = summary.get("_step"), summary.get("_timestamp")
        if not _is_number(step) or not _is_number(time_s):
            raise EffprofError(f"{path}: neither step nor time in it", "give the run's .wandb file")
        names = {*KNOWN, *LOSSES}
        series = {
            name: [(float(step), float(time_s), float(value))]
            for name, value in summary.items()
            if name in names and _is_number(value)
        }
        if not series:
            raise EffprofError(f"{path}: no figure of training in it", "give the run's .wandb file")
        log = log_of(self.name, "Weights & Biases", path, series)
        _add_facts(log, Path(path).parent)
        return log


def _add(series: dict[str, list[tuple[float, float, float]]], history: Any) -> None:
    items: dict[str, Any] = {}
    for item in history.item:
        try:
            items[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        except (ValueError, RecursionError):
            continue
    step = items.get("_step", history.step.num)
    time_s = items.get("_timestamp")
    if not _is_number(step) or not _is_number(time_s):
        return
    for name, value in items.items():
        if not name.startswith("_") and _is_number(value):
            series.setdefault(name, []).append((float(step), float(time_s), float(value)))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 63)


def _add_facts(log: ForeignLog, folder: Path) -> None:
    """The script's settings, and the GPU that `wandb-metadata.json` names; how many the job used is not in it."""
    log.facts |= facts_in(folder / "config.yaml")
    try:
        metadata = json.loads((folder / "wandb-metadata.json").read_text(encoding="utf-8", errors="replace"))
        name = metadata.get("gpu")
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if isinstance(name, str) and name:
        log.facts["device"] = name


FORMATS = (RunFile(), Summary())
