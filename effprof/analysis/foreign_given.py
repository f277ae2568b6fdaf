"""What a user adds to another tool's log: facts that it does not state, or states wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effprof.errors import EffprofError
from effprof.hardware.peak import canonical_dtype
from effprof.runlog.importers.base import ForeignLog

DTYPES = ("bf16", "fp16", "fp8", "fp4", "tf32", "fp32", "fp64")
# Field → option, fact of the log that it stands for.
_FACTS = {
    "sequence_length": ("--seq", "sequence_length"),
    "devices": ("--devices", "world_size"),
    "global_batch": ("--global-batch", "global_batch"),
}
_UNITS = {"--seq": "tokens of a sequence", "--devices": "devices", "--global-batch": "sequences of a step"}


@dataclass(frozen=True)
class Given:
    """What the log may lack.

    Attributes:
        model: a `transformers` config as a mapping.
        device: a name that the catalogue knows.
        dtype: of the matmuls.
        peak_tflops: dense peak of one device.
        sequence_length: tokens of a sequence.
        devices: number of devices of the whole job.
        global_batch: sequences of one optimizer step, over all devices and micro-batches.

    Raises:
        EffprofError: a count is below one, or no such dtype is known.
    """

    model: Mapping[str, Any] | None = None
    device: str | None = None
    dtype: str | None = None
    peak_tflops: float | None = None
    sequence_length: int | None = None
    devices: int | None = None
    global_batch: int | None = None

    def __post_init__(self) -> None:
        for field, (option, _) in _FACTS.items():
            value = getattr(self, field)
            if value is not None and value < 1:
                raise EffprofError(f"{option} {value}: not a number of {_UNITS[option]}", "give 1 or more")
        if self.dtype is not None and canonical_dtype(self.dtype) not in DTYPES:
            raise EffprofError(f"--dtype {self.dtype}: not a dtype of matmuls", f"give one of {', '.join(DTYPES)}")


def add_given(log: ForeignLog, given: Given) -> None:
    """Put what the user gave into the log's facts; a note says where the log states something else."""
    for field, (option, fact) in _FACTS.items():
        value = getattr(given, field)
        if value is not None:
            _replace(log, option, fact, value)
    if given.dtype is not None:
        printed = log.facts.get("dtype")
        if printed is not None:
            log.facts["dtype"] = canonical_dtype(str(printed))
        _replace(log, "--dtype", "dtype", canonical_dtype(given.dtype))
    if given.global_batch is not None and (log.has("samples") or log.has("consumed_samples")):
        log.notes.append(("given_unused", "--global-batch: the log prints the samples of its steps, and those count"))


def _replace(log: ForeignLog, option: str, fact: str, value: int | str) -> None:
    printed = log.facts.get(fact)
    if printed is not None and printed != value:
        log.notes.append(("given_instead", f"{option} {value} is taken in place of the log's own {printed}"))
    log.facts[fact] = value
