"""Numbers carry their units, and nothing from a log can drive a terminal."""

from __future__ import annotations

import pytest

from effprof.reports.text import bar, clean, duration, flops, gibibytes, half_width, percent, significant, wrap


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "not measured"),
        (0.0, "0 s"),
        (81.4e-6, "81.4 µs"),
        (0.0123, "12.3 ms"),
        (0.861, "861 ms"),
        (1.5, "1.50 s"),
        (59.4, "59.4 s"),
        (185, "3 min 05 s"),
        (3725, "1 h 02 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.001234, "0.00123"), (1.234, "1.23"), (12.34, "12.3"), (152_300, "152,300"), (-4.5, "-4.50")],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


def test_other_units() -> None:
    assert percent(0.3841) == "38.4 %"
    assert percent(None) == "not measured"
    assert flops(989.4e12, "/s") == "989.4 TFLOP/s"
    assert flops(5.15e10) == "51.5 GFLOP"
    assert flops(3.1) == "3 FLOP"
    assert gibibytes(61.2 * 2**30) == "61.2 GiB"
    assert gibibytes(5 * 2**20) == "5.0 MiB"
    assert half_width((0.381, 0.387), 100) == " ± 0.3"
    assert half_width((0.38400, 0.38401), 100) == " ± <0.1"
    assert half_width(None) == ""


def test_bars_are_proportional_and_small_is_not_nothing() -> None:
    assert bar(0) == ""
    assert bar(1, 4) == "████"
    assert bar(0.5, 4) == "██"
    assert bar(0.0001, 4) == "▏"
    assert bar(7, 4) == "████"


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[31mred\x1b[0m",
        "title\x1b]0;pwned\x07",
        "back\x08\x08space",
        "\u202egnp.exe",
        "zero\u200bwidth",
        "c1\x9b31m",
        "del\x7f",
        "line\nbreak\r\ttab",
        "half \ud800 pair",
    ],
)
def test_strings_from_a_log_become_one_visible_line(hostile: str) -> None:
    shown = clean(hostile)
    assert shown.isprintable()
    assert len(shown.splitlines()) == 1


def test_clean_keeps_ordinary_text_and_cuts_long_text() -> None:
    assert clean("Größe 模型 · v1") == "Größe 模型 · v1"
    assert clean("x" * 500, 10) == "x" * 9 + "…"


def test_wrapped_lines_fit_and_keep_the_label_apart() -> None:
    lines = wrap("word " * 60, "label")
    assert lines[0].startswith("label       word")
    assert all(len(line) <= 110 for line in lines)
    assert all(line.startswith(" " * 12) for line in lines[1:])
    assert all(len(line) <= 110 for line in wrap("x" * 400, "label"))
