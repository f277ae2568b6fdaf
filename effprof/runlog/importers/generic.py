"""Home-made loops: `key: value` or `key=value` with units, by the names that people give these figures."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache

from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.table import Record, to_columns
from effprof.runlog.importers.text import NUMBER, read_lines, to_number, to_time

_PAIR = re.compile(
    rf"(?<![\w/.])([A-Za-z][\w./-]*(?: [A-Za-z][\w./-]*)?) ?(?:[:=]|(?= \d)) ?({NUMBER})"
    r" ?(ms|us|s|%|GiB|GB|MiB|MB|tok/s)?(?![\w.])"
)
_STEP_IN_WORDS = re.compile(
    r"\b(?:step|iter|iteration|batch|update)s?\b[ #:=\[]*(\d[\d,]*)(?:\s*/\s*\d+)?", re.IGNORECASE
)
# Pattern of a figure's name → column, unit where none is printed. The first that fits holds.
_NAMES = (
    (
        r"(?:step|iter(?:ation)?|batch)_?(?:time|duration|ms)|dt|time_per_(?:step|iter\w*|batch)|sec/(?:step|it|iter)|s/it|ms/(?:step|it)",
        "step_time_s",
        "s",
    ),
    (r"(?:data|load(?:er)?|input|fetch)_?(?:time|wait)", "input_wait_s", "s"),
    (
        r"(?:tok(?:en)?s?)_?(?:/|_per_|per_)_?s(?:ec(?:ond)?)?_?(?:/|_per_|per_)_?(?:gpu|device|rank)|tps/gpu|tgs",
        "tokens_per_s_per_device",
        "",
    ),
    (r"(?:tok(?:en)?s?)_?(?:/|_per_|per_)_?s(?:ec(?:ond)?)?|tok_?s|tps|throughput/tokens_per_sec", "tokens_per_s", ""),
    (
        r"(?:samples?|examples?|seqs?|sequences|images?|imgs?)_?(?:/|_per_|per_)_?s(?:ec(?:ond)?)?|sps|ips",
        "samples_per_s",
        "",
    ),
    (r"tflops?(?:/s)?(?:/gpu|/device|_per_gpu)?", "tflops_per_device", ""),
    (r"mfu", "mfu", ""),
    (r"(?:train[_/])?loss", "loss", ""),
    (r"tokens_?(?:seen|consumed|total)|total_tokens|consumed_tokens", "consumed_tokens", ""),
    (r"elapsed|train_time|total_time|wall_time", "elapsed_s", "s"),
)
_EXPRESSIONS = tuple((re.compile(pattern, re.IGNORECASE), column, unit) for pattern, column, unit in _NAMES)
_SCALES = {"ms": 1e-3, "us": 1e-6, "%": 1e-2}
MIN_RECORDS = 3


class GenericLog:
    """A record per line that has a step's number and at least one known figure."""

    name = "generic"

    def score(self, head: Head) -> float:
        """Below any format of its own: a share of the lines that say something of speed."""
        found = [_record(line) for line in head.lines]
        useful = [record for record in found if record and set(record) - {"step", "loss"}]
        return 0.1 if len(useful) >= MIN_RECORDS else 0.05 if sum(map(bool, found)) >= MIN_RECORDS else 0.0

    def read(self, path: str) -> ForeignLog:
        """Every record, with a note on which name was taken for which column."""
        records: list[Record] = []
        taken: Counter[tuple[str, str]] = Counter()
        for line in read_lines(path):
            record = _record(line, taken)
            if not record:
                continue
            if records and record["step"] < records[-1]["step"]:
                records = [each for each in records if each["step"] < record["step"]]
            if records and record["step"] == records[-1]["step"]:
                records[-1] = {**record, **records[-1]}
                continue
            time = to_time(line)
            records.append(record if time is None else {**record, "time_s": time})
        if len(records) < MIN_RECORDS:
            raise EffprofError(
                f"{path}: no lines that tell steps apart", "print `step: 10 dt: 0.12s tok/s: 1000` or the like"
            )
        log = ForeignLog(self.name, "unknown", path, to_columns(records))
        names = ", ".join(f"{name} as {column}" for (name, column), _ in taken.most_common(12))
        log.notes.append(("columns", f"taken: {names}"))
        return log


def _record(line: str, taken: Counter[tuple[str, str]] | None = None) -> Record:
    if len(line) > 4000 or not any(character.isdigit() for character in line):
        return {}
    step = _STEP_IN_WORDS.search(line)
    if step is None:
        return {}
    record: Record = {"step": to_number(step.group(1))}
    for name, value, unit in _PAIR.findall(line):
        for column, default in _columns_of(name):
            if column not in record:
                scale = _SCALES.get(unit, 1.0)
                if column == "mfu" and unit != "%" and to_number(value) > 1:
                    scale = 1e-2
                if column.endswith("_s") and default == "s" and not unit and name.lower().endswith("ms"):
                    scale = 1e-3
                record[column] = to_number(value) * scale
                if taken is not None:
                    taken[name, column] += 1
                break
    return record if len(record) > 1 and not math.isnan(record["step"]) else {}


@lru_cache(maxsize=4096)
def _columns_of(name: str) -> tuple[tuple[str, str], ...]:
    """Columns that a printed name can stand for, each with its unit where none is printed."""
    words = name.replace(" ", "_").replace("-", "_")
    return tuple(
        (column, default)
        for expression, column, default in _EXPRESSIONS
        if expression.fullmatch(words) or expression.fullmatch(words.rpartition("_")[2])
    )


FORMAT = GenericLog()
