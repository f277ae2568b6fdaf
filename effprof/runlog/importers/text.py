"""Lines of logs that people keep: redrawn progress bars, colours, launchers' prefixes, endless lines, gzip."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import lru_cache
from typing import IO

from effprof.errors import EffprofError

MAX_LINE = 64 * 1024  # characters that are kept of a line: no step of any tool is longer, some argument dumps are
_CHUNK = 1 << 20
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b\][^\x07]*\x07")
_NUMBER = r"[-+]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
# A number as tools print it, for use inside a pattern: 1,234  5.9e-05  22.8K  nan
NUMBER = rf"(?:{_NUMBER}[KMGTB]?(?![\w.])|{_NUMBER}|[-+]?(?:nan|inf))"
_SUFFIXES = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_TIMES = (
    (re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?"), False),
    (re.compile(r"(\d\d)/(\d\d)/(\d{4}) (\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?"), True),
)
_RANK_WITHIN = 160  # characters of a line
_RANK_MARKS = ("rank", "[default", "dp=")  # every match of the pattern holds one, or begins the line with a number
_NUMBERED = re.compile(r"\s*\d{1,5}: ")
_RANK = re.compile(
    r"\[?rank[ =]?(\d+)\]?|\[RANK (\d+)\]|^\[default(\d+)\]:|^\s*(\d{1,5}): |\bDP=(\d+)\|", re.IGNORECASE
)


def read_lines(path: str, most_bytes: int | None = None) -> Iterator[str]:
    """The lines of a text file, cleaned; a progress bar's redrawings are lines of their own.

    Memory stays bounded: of a line only the first 64 KiB are kept.

    Args:
        most_bytes: stop after so many bytes; at the end by default.

    Raises:
        EffprofError: the file cannot be read.
    """
    try:
        with _open(path) as file:
            yield from _lines(file, most_bytes)
    except (OSError, EOFError) as error:
        raise EffprofError(f"{path}: {error}", "give a log file that can be read") from error


def clean(line: str) -> str:
    """A line without colours, cursor movements and trailing space."""
    return (_ANSI.sub("", line) if "\x1b" in line else line).rstrip()


def to_number(text: str) -> float:
    """A printed number: thousands separators and K, M, G, B, T are understood; NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        text = text.strip().replace(",", "").replace("_", "")
    factor = _SUFFIXES.get(text[-1:].upper(), 1.0) if text[-1:].isalpha() and text[:-1][-1:].isdigit() else 1.0
    try:
        return float(text[:-1] if factor != 1.0 else text) * factor
    except ValueError:
        return float("nan")


def to_time(line: str) -> float | None:
    """Unix time of the first date and time in a line, taken as UTC; None without one."""
    for pattern, is_american in _TIMES:
        found = pattern.search(line, 0, 200)
        if found is not None:
            a, b, c, hour, minute, second, digits = found.groups()
            midnight = _midnight(c, a, b) if is_american else _midnight(a, b, c)
            if midnight is None or hour > "23" or minute > "59" or second > "59":
                return None
            return midnight + (3600 * int(hour) + 60 * int(minute) + int(second)) + float(f"0.{digits or 0}")
    return None


@lru_cache(maxsize=64)
def _midnight(year: str, month: str, day: str) -> float | None:
    """Unix time at which a day begins in UTC; None where there is no such day."""
    try:
        return datetime(int(year), int(month), int(day), tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def to_seconds(text: str) -> float | None:
    """Seconds of a printed duration: `4 days, 7:18:24`, `0:03:29`, `12:05`."""
    found = re.fullmatch(r"\s*(?:(\d+) days?,? )?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)\s*", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def to_rank(line: str) -> int | None:
    """The rank that a launcher or a logger put into a line; None without one."""
    start = line[:_RANK_WITHIN].lower()
    if not (any(map(start.__contains__, _RANK_MARKS)) or _NUMBERED.match(line)):
        return None
    found = _RANK.search(line, 0, _RANK_WITHIN)
    return None if found is None else int(next(group for group in found.groups() if group is not None))


def _open(path: str) -> IO[bytes]:
    if "://" in path:
        import fsspec

        opened: IO[bytes] = fsspec.open(path, "rb", compression="infer").open()
        return opened
    file = open(path, "rb")  # noqa: SIM115  # the caller closes it
    if file.peek(2)[:2] == b"\x1f\x8b":
        file.close()
        return io.BufferedReader(gzip.open(path))
    return file


def _lines(file: IO[bytes], most_bytes: int | None) -> Iterator[str]:
    rest = b""
    is_overlong = False
    read = 0
    while (most_bytes is None or read < most_bytes) and (chunk := file.read(_CHUNK)):
        read += len(chunk)
        pieces = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            if not is_overlong:
                yield _decode(piece)
            is_overlong = False
        if len(rest) > MAX_LINE:
            if not is_overlong:
                yield _decode(rest)
            rest, is_overlong = b"", True
    if rest and not is_overlong:
        yield _decode(rest)


def _decode(line: bytes) -> str:
    return clean(line[:MAX_LINE].decode("utf-8", "replace"))
