"""MLPerf's compliance log: `:::MLLOG` lines of JSON; blocks of training between evaluations, no steps.

https://github.com/mlcommons/logging
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.table import Record, to_columns
from effprof.runlog.importers.text import read_lines

_MARK = ":::MLLOG"
_FACTS = {
    "global_batch_size": "global_batch",
    "max_sequence_length": "sequence_length",
    "gradient_accumulation_steps": "accumulate",
    "submission_benchmark": "benchmark",
    "submission_platform": "platform",
}


class MlperfLog:
    """A record per block of training, its rate from the samples at both ends."""

    name = "mlperf"

    def score(self, head: Head) -> float:
        """Marked lines."""
        return 2.0 * sum(_MARK in line for line in head.lines)

    def read(self, path: str) -> ForeignLog:
        """Blocks and the throughput that the submission prints between them."""
        facts: dict[str, Any] = {}
        records: list[Record] = []
        begun: tuple[float, float] | None = None
        printed = math.nan
        for line in read_lines(path):
            entry = _entry(line)
            if entry is None:
                continue
            key, value, metadata = entry.get("key"), entry.get("value"), entry.get("metadata") or {}
            seconds = float(entry.get("time_ms", math.nan)) / 1e3
            if key in _FACTS:
                facts.setdefault(_FACTS[key], value)
            elif key == "tracked_stats" and isinstance(value, dict):
                printed = float(value.get("throughput", math.nan))
                if records and math.isnan(records[-1]["printed"]):
                    records[-1]["printed"] = printed
            elif key in ("block_start", "run_start"):
                begun, printed = (seconds, _position(metadata)), math.nan
            elif key == "block_stop" and begun is not None:
                records.append(_block(begun, seconds, _position(metadata), printed))
                begun = None
        if not records:
            raise EffprofError(f"{path}: no block of training in it", "give a log from run_start to run_stop")
        return self._log(path, records, facts)

    def _log(self, path: str, records: list[Record], facts: dict[str, Any]) -> ForeignLog:
        samples_a_step = facts.get("global_batch")
        for number, record in enumerate(records, start=1):
            samples = record.pop("samples_in_block")
            steps = samples / samples_a_step if samples_a_step else math.nan
            is_whole = steps >= 1 and abs(steps - round(steps)) < 1e-6
            record |= {"step": float(number), "covers": round(steps) if is_whole else math.nan}
            measured = samples / record["interval_s"] if samples > 0 else math.nan
            record["samples_per_s"] = record["printed"] if math.isnan(measured) else measured
        log = ForeignLog(self.name, "MLPerf", path, to_columns(records), facts)
        log.columns["claimed_samples_per_s"] = log.columns.pop("printed")
        log.notes.append(("blocks", "a compliance log has no steps: each record is a block of training"))
        return log


def _block(begun: tuple[float, float], stopped_s: float, position: float, printed: float) -> Record:
    return {
        "interval_s": stopped_s - begun[0],
        "time_s": stopped_s,
        "samples_in_block": position - begun[1],
        "printed": printed,
    }


def _position(metadata: dict[str, Any]) -> float:
    """Samples up to here, where the submission counts in samples; NaN where it counts in epochs."""
    value = metadata.get("samples_count")
    return float(value) if isinstance(value, (int, float)) else math.nan


def _entry(line: str) -> dict[str, Any] | None:
    at = line.find(_MARK)
    if at < 0:
        return None
    try:
        entry = msgspec.json.decode(line[at + len(_MARK) :].strip())
    except (msgspec.DecodeError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


FORMAT = MlperfLog()
