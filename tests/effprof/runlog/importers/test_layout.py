"""Shortcuts on long logs change no result: plain text looked for before a pattern, and layouts read once."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest

from effprof.runlog.importers import table
from effprof.runlog.importers.base import ForeignLog, all_importers
from effprof.runlog.importers.layout import Layouts
from effprof.runlog.importers.pattern import Pattern, plain_pieces
from effprof.runlog.importers.table import LineFormat
from effprof.runlog.importers.text import to_time

LINES = {
    "megatron-lm": " [2024-10-24 21:02:{two}] iteration {step:8d}/   40000 | consumed samples: {many:12d} | elapsed "
    "time per iteration (ms): {broken} | throughput per GPU (TFLOP/s/GPU): {number} | learning rate: {rate:E} | "
    "global batch size:    64 | lm loss: {number} | loss scale: 1.0 | number of nan iterations:   0 |",
    "nanotron": "[INFO|DP=0|PP=0|TP=0]: iteration: {step} / 50 | consumed_tokens: {number} | "
    "elapsed_time_per_iteration_ms: {number} | tokens_per_sec: {many:,} | lm_loss: {broken} |",
    "deepspeed-chat": "|E2E latency={broken}s |Generate time={broken}s (65.40%) |CurSamplesPerSec={number} |",
    "torchtitan": "step: {step:2d}  loss: {number}  memory:  8.44GiB(13.20%)  tps: {many:,}  tflops: {broken}  mfu: 9%",
}
NUMBERS = ("1.5", "12", "1,234.5", "22.8K", "nan", "-1.25", "7.", "3e-05", "0.0", "100.25")


def log_lines(name: str, generator: random.Random) -> str:
    lines = []
    for step in range(1, 200):
        number = generator.choice(NUMBERS)
        values = {"two": f"{generator.randrange(60):02d}", "many": generator.randrange(10**7), "number": number}
        line = LINES[name].format(step=step, broken=f"{generator.random():.3f}", rate=generator.random(), **values)
        if generator.random() < 0.1:
            line = generator.choice([line.upper(), line.replace(": ", ":  "), f"İ {line}", f"H100 {line}", line[:60]])
        lines.append(line)
    return "\n".join(lines)


def read(path: Path, name: str) -> ForeignLog:
    (found,) = (each for each in all_importers() if isinstance(each, LineFormat) and each.name == name)
    return found.read(str(path))


@pytest.mark.parametrize("name", LINES)
def test_layouts_change_no_value(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_text(log_lines(name, random.Random(0)))
    used: list[bool] = []

    class Watched(Layouts):
        def read(self, line: str) -> dict[str, float] | None:
            found = super().read(line)
            used.append(found is not None)
            return found

    monkeypatch.setattr(table, "Layouts", Watched)
    quick = read(path, name)
    assert sum(used) > 20  # the shortcut was taken
    monkeypatch.setattr(Layouts, "learn", lambda *_: None)
    slow = read(path, name)
    assert quick.columns.keys() == slow.columns.keys()
    for column, values in slow.columns.items():
        np.testing.assert_array_equal(quick.columns[column], values, err_msg=column)


def test_a_layout_knows_what_a_pattern_could_tell_apart() -> None:
    layouts = Layouts()
    line = "step 10/99 on H100: loss 1.5"
    layouts.learn(line, {"step": ((5, 7), 1.0), "loss": ((25, 28), 2.0)})
    assert layouts.read(line) == {"step": 10, "loss": 3}
    assert layouts.read("step 7/100 on H100: loss 1e2") == {"step": 7, "loss": 200}
    for other in ("step 7/99.5", "step 7/99 on H200: loss 1.5", "step  7/99 on H100: loss 1.5"):
        assert layouts.read(other.ljust(len(line))) is None
    layouts.learn("step 10 loss 22.8K", {"step": ((5, 7), 1.0), "loss": ((13, 18), 1.0)})
    assert layouts.read("step 10 loss 22.8K") is None  # no plain number


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        (r"\bloss:\s*(\d+)", ["loss:"]),
        (r"Elapsed[ _]time \(ms\)= *(\d+)s", ["elapsed", "time (ms)=", "s"]),
        (r"steps? (?=x)done", ["step", " done"]),
        (r"(?:a|b) words", ["", " words"]),
        (r"one|another", [""]),
        (r"x{2,3}yes[|)]a\|b", ["", "yes", "a|b"]),
        (r"(?<!data_)\btime: ([^)\]]*)", ["time: "]),
    ],
)
def test_plain_pieces_are_in_every_match(pattern: str, pieces: list[str]) -> None:
    assert plain_pieces(pattern) == pieces


def test_every_pattern_finds_what_its_expression_finds() -> None:
    generator = random.Random(1)
    lines = [line for name in LINES for line in log_lines(name, generator).splitlines()]
    patterns = [
        place.place
        for each in all_importers()
        if isinstance(each, LineFormat)
        for column in each.columns.values()
        for place in (column if isinstance(column, tuple) else (column,))
    ]
    matches = 0
    for line in generator.sample(lines, 100):
        for pattern in patterns:
            found = pattern.search(line, line.lower())
            expected = re.compile(pattern.text, re.IGNORECASE).search(line)
            assert (found and found.span()) == (expected and expected.span()), (pattern.text, line)
            matches += found is not None
    assert matches > 300


def test_a_letter_that_grows_in_lower_case_moves_no_match() -> None:
    line = "İİİ loss: 5"
    found = Pattern(r"loss: (\d)").search(line, line.lower())
    assert found is not None
    assert found.group(1) == "5"


def test_days_that_do_not_exist_have_no_time() -> None:
    assert to_time("2024-02-30 10:00:00") is None
    assert to_time("2024-02-29 24:00:00") is None
    assert to_time("[2024-02-29 23:59:59,250]") == pytest.approx(1709251199.25)
