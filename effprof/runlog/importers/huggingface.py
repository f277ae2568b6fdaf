"""The Trainer of transformers and what builds on it: stdout, its JSON files, LLaMA-Factory's `trainer_log.jsonl`.

The Trainer prints a dictionary per logging without a step number; progress bars and `num_input_tokens_seen` lie around
it. Its `train_runtime` holds evaluations and checkpoints, and its rates are means over all of the run.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from effprof.errors import EffprofError
from effprof.runlog.files import Files
from effprof.runlog.importers.base import ForeignLog, Head
from effprof.runlog.importers.table import Record, to_columns
from effprof.runlog.importers.text import read_lines, to_number, to_seconds

NAME, FRAMEWORK = "hf-trainer", "transformers"
_DICTIONARY = re.compile(r"\{'(?:loss|train_runtime|eval_loss|eval_runtime)': .*\}")
_BAR = re.compile(r"(\d+)/(\d+) \[([\d:]+)<")
_FACTS = {
    "global_batch": re.compile(r"Total train batch size[^=]*= *([\d,]+)"),
    "micro_batch": re.compile(r"Instantaneous batch size per device *= *([\d,]+)"),
    "accumulate": re.compile(r"Gradient Accumulation steps *= *([\d,]+)"),
    "max_steps": re.compile(r"Total optimization steps *= *([\d,]+)"),
    "world_size": re.compile(r"\bworld_size *[=:] *(\d+)\b"),
}
_FINAL = re.compile(
    r"\*\*\*\*\* train metrics|^\s*(train_runtime|train_samples_per_second|train_steps_per_second) += (.+)$"
)
MAX_STATE_BYTES = 1 << 30
_RESULTS = (b'"train_runtime"', b'"train_samples_per_second"', b'"train_loss"')


class TrainerOutput:
    """What the Trainer prints."""

    name = NAME

    def score(self, head: Head) -> float:
        """Dictionaries of losses and of the end."""
        dictionaries = sum(_DICTIONARY.search(line) is not None for line in head.lines)
        endings = sum("***** Running training *****" in line or bool(_final(line)) for line in head.lines)
        return dictionaries + 0.5 * min(endings, 4)

    def read(self, path: str) -> ForeignLog:
        """A record per dictionary with a loss; without any, per redrawing of the progress bar."""
        records: list[Record] = []
        bars: dict[int, Record] = {}
        facts: dict[str, Any] = {}
        step, elapsed, evaluation = 0, math.nan, 0.0
        for line in read_lines(path):
            for name, pattern in _FACTS.items():
                found = pattern.search(line) if name not in facts else None
                if found:
                    facts[name] = int(to_number(found.group(1)))
            bar = _BAR.search(line)
            if bar is not None and (facts.get("max_steps") in (None, int(bar.group(2)))):
                step, elapsed = int(bar.group(1)), to_seconds(bar.group(3)) or 0.0
                bars.setdefault(step, {"step": float(step), "elapsed_s": elapsed})
            ending = _final(line)
            if ending is not None:
                facts.setdefault(*ending)
            values = _dictionary(line)
            evaluation += values.get("eval_runtime", 0.0)
            if "train_samples_per_second" in values:
                facts |= {name: value for name, value in values.items() if name.startswith("train_")}
            elif "loss" in values:
                records.append(_record(values, step, elapsed))
        if not records:
            records = [record for each, record in sorted(bars.items()) if each]
        if not records and "train_runtime" not in facts:
            raise EffprofError(f"{path}: no step of the Trainer in it", "give the part of the log that trains")
        log = _log(path, _without_repeats(records), facts)
        log.evaluation_s = evaluation or None
        return log


class TrainerState:
    """`trainer_state.json` of a checkpoint: losses by step, no times but the whole run's."""

    name = NAME

    def score(self, head: Head) -> float:
        """A JSON object with the state's keys."""
        start = head.raw.lstrip()[:1]
        keys = (b'"log_history"', b'"global_step"', b'"train_runtime"', b'"is_world_process_zero"')
        return 100.0 if start == b"{" and sum(key in head.raw for key in keys) >= 2 else 0.0

    def read(self, path: str) -> ForeignLog:
        """A record per logged loss."""
        state = _json(path)
        history = [entry for entry in state.get("log_history", []) if isinstance(entry, dict)]
        records, facts, evaluation = [], dict[str, Any](), 0.0
        for entry in history:
            values = _numbers(entry)
            evaluation += values.get("eval_runtime", 0.0)
            if "loss" in values:
                records.append(_record(values, values.get("step", math.nan), math.nan))
            facts |= {name: value for name, value in values.items() if name.startswith("train_")}
        facts |= {"micro_batch": state.get("train_batch_size"), "max_steps": state.get("max_steps")}
        facts["total_flops"] = state.get("total_flos")
        log = _log(path, records, {name: value for name, value in facts.items() if value is not None})
        log.evaluation_s = evaluation or None
        return log


class TrainerResults:
    """`train_results.json` or `all_results.json` that scripts save after training: the whole run's own figures."""

    name = NAME

    def score(self, head: Head) -> float:
        """Its keys, where no `trainer_state.json`, which says more, lies beside it."""
        is_results = head.raw.lstrip()[:1] == b"{" and all(key in head.raw for key in _RESULTS)
        has_state = Path(head.path).with_name("trainer_state.json").exists()
        return 80.0 if is_results and not has_state else 0.0

    def read(self, path: str) -> ForeignLog:
        """No record: one loss and the averages of all the run."""
        values = _numbers(_json(path))
        facts: dict[str, Any] = {name: value for name, value in values.items() if name.startswith("train_")}
        if "train_runtime" not in facts:
            raise EffprofError(f"{path}: no train_runtime in it", "give the file as the Trainer wrote it")
        facts["total_flops"] = values.get("total_flos")
        return _log(path, [], {name: value for name, value in facts.items() if value is not None})


class LlamaFactoryLog:
    """LLaMA-Factory's `trainer_log.jsonl`: time since training began, at each logging."""

    name = "llamafactory"

    def score(self, head: Head) -> float:
        """Lines of JSON with its keys."""
        return 2.0 * sum('"current_steps"' in line and '"elapsed_time"' in line for line in head.lines)

    def read(self, path: str) -> ForeignLog:
        """A record per line with a loss."""
        records = []
        for line in read_lines(path):
            try:
                entry = msgspec.json.decode(line) if line.startswith("{") else {}
            except msgspec.DecodeError:
                continue
            if not isinstance(entry, dict) or "current_steps" not in entry or entry.get("loss") is None:
                continue
            values = _numbers(entry)
            records.append(
                {
                    "step": values.get("current_steps", math.nan),
                    "loss": values.get("loss", math.nan),
                    "elapsed_s": to_seconds(str(entry.get("elapsed_time", ""))) or math.nan,
                    # 0 where tokens were not counted; cumulative where they were
                    "consumed_tokens": values.get("total_tokens") or math.nan,
                    "tokens_per_s": values.get("throughput") or math.nan,
                }
            )
        if not records:
            raise EffprofError(f"{path}: no logged step in it", "give trainer_log.jsonl of a training")
        log = ForeignLog(self.name, "LLaMA-Factory", path, to_columns(records))
        log.averages = frozenset({"tokens_per_s"})
        return log


def _log(path: str, records: list[Record], facts: dict[str, Any]) -> ForeignLog:
    log = ForeignLog(NAME, FRAMEWORK, path, to_columns(records), facts, averages=frozenset({"tokens_per_s"}))
    runtime, samples = facts.get("train_runtime"), facts.get("train_samples_per_second")
    if runtime is not None and samples is not None:
        log.notes.append(
            (
                "run_averages",
                f"the Trainer's own figures, {samples:g} samples/s over {runtime:g} s, hold start-up, evaluations and "
                "checkpoints: they are no step's",
            )
        )
    return log


def _record(values: Mapping[str, float], step: float, elapsed: float) -> Record:
    return {
        "step": values.get("step", float(step)),
        "loss": values["loss"],
        "elapsed_s": values.get("train_runtime", elapsed),
        "consumed_tokens": values.get("num_input_tokens_seen") or math.nan,
        "tokens_per_s": values.get("train_tokens_per_second", values.get("train_tokens_per_sec", math.nan)),
        "epoch": values.get("epoch", math.nan),
    }


def _without_repeats(records: list[Record]) -> list[Record]:
    """Without what every rank prints again; a progress bar is redrawn after its step's dictionary or before it."""
    unique = list({(record.get("loss"), record.get("epoch")): record for record in records}.values())
    steps = [record["step"] for record in unique]
    if len(set(steps)) < len(steps):
        gaps = sorted(later - step for step, later in pairwise(steps))
        covers = max(1.0, gaps[len(gaps) // 2])
        last = 0.0
        for record in unique:
            last = record["step"] = max(last + covers, record["step"])
    return unique


def _dictionary(line: str) -> dict[str, float]:
    found = _DICTIONARY.search(line)
    if found is None:
        return {}
    try:
        values = ast.literal_eval(re.sub(r"\bnan\b|\binf\b", "None", found.group()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    return _numbers(values) if isinstance(values, dict) else {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    pairs = ((name, _number(value)) for name, value in values.items())
    return {name: value for name, value in pairs if not math.isnan(value)}


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)):
        return to_number(str(value))
    try:
        return float(value)
    except OverflowError:  # JSON and Python write whole numbers of any length
        return math.nan


def _final(line: str) -> tuple[str, float] | None:
    found = _FINAL.search(line)
    if found is None or found.group(1) is None:
        return None
    seconds = to_seconds(found.group(2))
    value = to_number(found.group(2)) if seconds is None else seconds
    return None if math.isnan(value) else (found.group(1), value)


def _json(path: str) -> dict[str, Any]:
    raw = Files(path).read(path)
    if len(raw) > MAX_STATE_BYTES:
        raise EffprofError(f"{path}: {len(raw)} bytes of JSON", "give the log of a part of the run")
    try:
        state = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EffprofError(f"{path}: {error}", "give a whole trainer_state.json") from error
    if not isinstance(state, dict):
        raise EffprofError(f"{path}: not a Trainer's state", "give trainer_state.json")
    return state


FORMATS = [TrainerOutput(), TrainerState(), TrainerResults(), LlamaFactoryLog()]
