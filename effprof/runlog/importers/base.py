"""What a foreign log becomes, and the registry that finds who can read it.

A format is one file in this folder (or an entry point in the group `effprof.importers`) that holds `FORMAT`, an object
with `name`, `score` and `read`. Most are tables: a `LineFormat` (see `table.py`) says which line is a step and which
piece of it goes into which column. Formats are told apart by content, never by a file's name.

To add one, write `effprof/runlog/importers/<tool>.py` with `FORMAT` (or `FORMATS`) and a test. `torchtitan.py` is a
short example, `megatron.py` one that mends its log after reading (`finish`), `huggingface.py` one that is no table.

- A column holds what the log prints and nothing that follows from it: `effprof.analysis.foreign_steps` derives the
  rest, and what is printed is what `source.claimed` repeats. `COLUMNS` lists the names and units.
- Running averages are named in `averages`: they stay claims and never become a step's value.
- `read_lines` takes care of colours, redrawn bars, gzip and endless lines; the table of ranks and restarts.
- A fact that the log does not state stays absent. What was taken for what goes into `notes`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

ENTRY_POINT_GROUP = "effprof.importers"
# Modules of this folder that hold no format.
_NOT_FORMATS = ("base", "hparams", "layout", "pattern", "scalars", "sniff", "table", "text")

# What a column of a foreign log means. A record is what the log says of one optimizer step, or of several.
COLUMNS = {
    "step": "optimizer step, as the tool counts",
    "covers": "optimizer steps that the record stands for",
    "step_time_s": "seconds per optimizer step",
    "interval_s": "seconds that all the record's steps took",
    "time_s": "Unix time (or any clock in seconds) of the record",
    "elapsed_s": "seconds since training began",
    "tokens": "tokens of the whole job's step",
    "samples": "samples of the whole job's step",
    "consumed_tokens": "tokens of the whole job up to this step",
    "consumed_samples": "samples of the whole job up to this step",
    "tokens_per_s": "of the whole job",
    "tokens_per_s_per_device": "of one device",
    "samples_per_s": "of the whole job",
    "tflops_per_device": "TFLOP/s of one device, as the tool counts them",
    "mfu": "share of the tool's own peak, 0 … 1",
    "loss": "training loss",
    "input_wait_s": "seconds per step that the loop waited for data",
    "generation_s": "seconds per step of roll-outs",
    "memory_bytes": "memory of one device",
}


@dataclass
class ForeignLog:
    """A foreign log's records as columns of equal length, float64, NaN where a record lacks the value.

    `facts` holds what does not change from step to step: world_size, data_parallel_size, global_batch, micro_batch,
    sequence_length, device, dtype, framework_version, model (a mapping), … `claims` names the columns that the log
    itself prints. `averages` are columns that hold running averages: claims, but no step's own value.
    """

    format: str
    framework: str
    path: str
    columns: dict[str, NDArray[np.float64]]
    facts: dict[str, Any] = field(default_factory=dict)
    averages: frozenset[str] = frozenset()
    evaluation_s: float | None = None
    repeated: int = 0
    notes: list[tuple[str, str]] = field(default_factory=list)  # (code, message)

    @property
    def records(self) -> int:
        """Number of step records."""
        return len(next(iter(self.columns.values()), ()))

    def has(self, name: str) -> bool:
        """Whether any record has a value in this column."""
        return name in self.columns and bool(np.isfinite(self.columns[name]).any())


@dataclass(frozen=True)
class Head:
    """The beginning of a file: what formats are told by."""

    path: str
    raw: bytes
    lines: Sequence[str]  # cleaned; from all over the file where its beginning holds no step of any format

    @cached_property
    def lowered(self) -> list[str]:
        """The lines in lower case."""
        return [line.lower() for line in self.lines]


@runtime_checkable
class Importer(Protocol):
    """Reads one format. Where `is_folder_one_log` is true, `read` also takes a folder of several of its files."""

    name: str

    def score(self, head: Head) -> float:
        """How surely this is the file's format: 0 is no; among several the highest reads it."""

    def read(self, path: str) -> ForeignLog:
        """The file's records.

        Raises:
            EffprofError: it is of this format, but cannot be read, with the reason.
        """


@lru_cache(maxsize=1)
def all_importers() -> tuple[Importer, ...]:
    """Every format: the files of this folder, then third parties' entry points."""
    return tuple(_load())


def _load() -> Iterator[Importer]:
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name not in _NOT_FORMATS:
            formats = importlib.import_module(f"{package}.{module.name}")
            yield from getattr(formats, "FORMATS", None) or [formats.FORMAT]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        yield entry.load()
