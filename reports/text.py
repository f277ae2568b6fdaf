"""Numbers with their units and strings made safe to print: what all text reports share."""

from __future__ import annotations

import re
import textwrap
import unicodedata

WIDTH = 110
NOT_MEASURED = "not measured"
_BLOCKS = " ▏▎▍▌▋▊▉█"


def clean(value: object, limit: int = 300) -> str:
    """A string from a log as one line of visible characters.

    Control characters, escape sequences and characters that turn the direction of text are replaced, so that a name
    in a log can neither drive the reader's terminal nor disguise itself.
    """
    text = re.sub(r"\s+", " ", str(value)).strip()
    text = "".join("�" if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co") else letter for letter in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def percent(share: float | None, digits: int = 1) -> str:
    """0.3841 → "38.4 %"."""
    return NOT_MEASURED if share is None else f"{100 * share:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """A duration as people say it: "1 h 02 min", "3 min 05 s", "0.861 s", "12.3 ms", "81 µs"."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 5e-7:
        return "0 s"  # what is left of it is the rounding of clocks
    if seconds >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    if seconds >= 60:
        whole = round(seconds)
        return f"{whole // 60} min {whole % 60:02d} s"
    if seconds >= 1:
        return f"{significant(seconds)} s"
    return f"{significant(seconds * 1e3)} ms" if seconds >= 1e-3 else f"{significant(seconds * 1e6)} µs"


def significant(value: float, digits: int = 3) -> str:
    """A number with about three significant digits, no exponent, thousands separated."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    decimals = digits - 1
    while size >= 10 and decimals > 0:
        size /= 10
        decimals -= 1
    while 0 < size < 1 and decimals < 12:
        size *= 10
        decimals += 1
    return f"{value:.{decimals}f}"


def flops(value: float | None, suffix: str = "") -> str:
    """FLOPs with a decimal prefix: 4.1e13 → "41.0 TFLOP"; `suffix` "/s" for a rate."""
    if value is None:
        return NOT_MEASURED
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            # peaks are quoted in TFLOP/s up to thousands: one decimal keeps 989.4 recognisable
            return f"{value / size:,.1f} {prefix}FLOP{suffix}"
    return f"{value:.0f} FLOP{suffix}"


def gibibytes(value: float | None) -> str:
    """Bytes as GiB, or MiB below a tenth of one."""
    if value is None:
        return NOT_MEASURED
    return f"{value / 2**30:,.1f} GiB" if value >= 0.1 * 2**30 else f"{value / 2**20:,.1f} MiB"


def rate(value: float | None, unit: str) -> str:
    """A rate with thousands separated."""
    return f"{unit} {NOT_MEASURED}" if value is None else f"{significant(value)} {unit}"


def half_width(interval: tuple[float, float] | None, scale: float = 1.0, digits: int = 1) -> str:
    """Half the width of an interval as " ± 0.3", empty without one."""
    if interval is None:
        return ""
    half = scale * (interval[1] - interval[0]) / 2
    smallest: float = 10.0**-digits
    return f" ± {half:.{digits}f}" if half >= smallest / 2 or half == 0 else f" ± <{smallest:.{digits}f}"


def bar(share: float, width: int = 20) -> str:
    """A bar of `width` characters at share 1, in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if eighths == 0 and share > 0:
        eighths = 1
    return "█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")


def wrap(text: str, label: str = "", indent: int = 12) -> list[str]:
    """Lines of at most WIDTH columns: the label in a column of its own, the text beside it."""
    body = textwrap.wrap(text, WIDTH - indent, break_long_words=True, break_on_hyphens=False) or [""]
    return [f"{label:<{indent}}{body[0]}".rstrip(), *(" " * indent + line for line in body[1:])]


def plural(number: int, word: str) -> str:
    """3, "rank" → "3 ranks"."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
