"""DeepSpeed's two reports that are no training logs: the flops profiler's and the autotuner's table of experiments.

A profile is of one step. Its rate counts a step as three forward passes, or four where activations are recomputed;
versions differ in whether that is divided by the whole iteration or leaves the optimizer out.
https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/profiling/flops_profiler/profiler.py
https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/autotuning/autotuner.py
"""

from __future__ import annotations

import math

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.table import Column, LineFormat
from effprof.runlog.importers.text import read_lines, to_number

_SECONDS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
_TFLOPS = (("TFLOPS", 1.0), ("GFLOPS", 1e-3))
_HEADER = ("tuning_space", "num_experiments", "best_metric_val", "best_exp_name")
_MOST_SPACES = 1000


class Autotuning:
    """The table that autotuning ends with: spaces, how many experiments each, and the best of them."""

    name = "deepspeed-autotuning"

    def score(self, head: Head) -> float:
        """The table's header."""
        return 60.0 if any(_cells(line) == _HEADER for line in head.lines) else 0.0

    def read(self, path: str) -> ForeignLog:
        """No records: an experiment is no step, and the table does not say what its metric is (throughput or other)."""
        spaces: dict[str, tuple[float, float, str]] = {}
        is_table = False
        for line in read_lines(path):
            cells = _cells(line)
            is_table = is_table or cells == _HEADER
            if is_table and len(cells) == len(_HEADER) and len(spaces) < _MOST_SPACES:
                count, best = to_number(cells[1]), to_number(cells[2])
                if not math.isnan(count + best):
                    spaces[cells[0]] = (count, best, cells[3])
        if not spaces:
            raise EffprofError(f"{path}: no row in the table of experiments", "give the whole summary of autotuning")
        log = ForeignLog(self.name, "DeepSpeed", path, {})
        log.notes.append(("no_steps", "a table of autotuning experiments holds no steps: no time and no rate is known"))
        found = [
            f"{space}: {name} with {best:g} of {count:g}" for space, (count, best, name) in spaces.items() if best > 0
        ]
        log.notes.append(("best_experiments", f"best metric (its unit is not printed) {'; '.join(found) or 'none'}"))
        failed = [space for space, (_, best, _) in spaces.items() if best <= 0]
        if failed:
            log.notes.append(("failed_experiments", f"no experiment gave a metric in {', '.join(failed)}"))
        return log


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|")) if line.lstrip().startswith("|") else ()


def _scaled(pattern: str, units: tuple[tuple[str, float], ...]) -> tuple[Column, ...]:
    return tuple(Column(rf"{pattern}:\s*{{n}} {unit}\b", scale) for unit, scale in units)


def _say_of_what(log: ForeignLog) -> None:
    log.notes.append(
        ("profile", "of single profiled steps; the rate counts a step as 3 forward passes, 4 with recompute")
    )


FORMATS = [
    Autotuning(),
    LineFormat(
        name="deepspeed-flops-profiler",
        framework="DeepSpeed",
        step=r"Profile Summary at step (?P<step>{n})",
        is_block=True,
        has_time=False,
        weight=20.0,
        columns={
            "step_time_s": _scaled(r"\biter latency", _SECONDS),
            "samples_per_s": Column(r"\bsamples/second:\s*{n}"),
            "tflops_per_device": (
                *_scaled(r"\bFLOPS per GPU = [\d.]+ \* fwd flops per GPU / iter latency", _TFLOPS),
                *_scaled(r"fwd\+bwd FLOPS per GPU = [\d.]+ \* fwd flops per GPU / \(fwd\+bwd latency\)", _TFLOPS),
            ),
        },
        facts={
            "world_size": r"^world size:\s*(\d+)$",
            "data_parallel_size": r"^data parallel size:\s*(\d+)$",
            "micro_batch": r"^batch size per GPU:\s*(\d+)$",
        },
        finish=_say_of_what,
    ),
]
