"""Damaged and hostile traces: one clear error, in bounded memory and time; what is whole is salvaged."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from traces import document, kernel, write

from effprof.errors import EffprofError
from effprof.trace.account import account_traces

WHOLE = json.dumps(document([kernel("a_gemm", index * 10, 5) for index in range(200)], rank=3)).encode()
HEAD = b'{"schemaVersion": 1, "traceEvents": ['
MIB = 1 << 20


def bomb(path: Path, head: bytes, block: bytes, megabytes: int) -> str:
    """A gzip file that expands a thousand times."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    with open(path, "wb") as file:
        file.write(deflate.compress(head))
        for _ in range(megabytes):
            file.write(deflate.compress(block * (MIB // len(block))))
        file.write(deflate.flush())
    return str(path)


def test_cut_off_at_every_byte(tmp_path: Path) -> None:
    """The whole events are kept, and what was lost is counted to the byte."""
    path = tmp_path / "t.json"
    for size in range(len(HEAD) + 250, len(WHOLE), 997):
        path.write_bytes(WHOLE[:size])
        found = account_traces(str(path))
        (account,) = found.ranks.values()
        text = WHOLE[:size]
        kept = account.events
        assert account.compute_s == pytest.approx(kept * 5e-6)
        if text.rstrip().endswith(b"]"):
            assert not found.lost_bytes
            continue
        assert list(found.ranks) == [3]
        rest = text[text.rindex(b"}}") + 2 :] if not text.endswith(b"}}") else b""
        assert found.lost_bytes == {str(path): len(rest.lstrip(b", "))}
        assert kept == text.count(b"}}")
        assert [problem.code for problem in found.problems] == ["trace_truncated"]


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
def test_a_gzip_file_cut_off(tmp_path: Path, share: float) -> None:
    data = gzip.compress(WHOLE)
    path = tmp_path / "t.json.gz"
    path.write_bytes(data[: int(len(data) * share)])
    found = account_traces(str(path))
    assert 0 < found.ranks[3].events < 200
    assert found.lost_bytes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"hello", "not a profiler trace"),
        (b"\x00\x01\x02\xff" * 100, "not a profiler trace"),
        (b'{"a": 1}', "no list of traceEvents"),
        (b"{}", "no list of traceEvents"),
        (b"[]", "no events"),
        (b'{"traceEvents": []}', "no events"),
        (b"[", "cut off before its first whole event"),
        (HEAD + b'{"ph": "X", "cat": "ker', "cut off before its first whole event"),
        (HEAD + b'{"ph": "X" "cat": 5}]}', "damaged after event 0"),
        (HEAD + b'{"ph": }]}', "damaged after event 0"),
        (HEAD + b"[" * 100_000 + b"]" * 100_000 + b"]}", "nested"),
        (HEAD + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}", "nested"),
        (b"[" * 5_000_000, "nested"),
    ],
)
@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_says_what_is_wrong(tmp_path: Path, content: bytes, says: str, name: str) -> None:
    began = time.monotonic()
    with pytest.raises(EffprofError) as caught:
        account_traces(write(tmp_path / name, content))
    assert says in caught.value.message
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    assert time.monotonic() - began < 20


def test_a_gz_that_is_none_and_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    path.write_bytes(WHOLE)
    with pytest.raises(EffprofError, match="not gzip"):
        account_traces(str(path))
    path.write_bytes(b"")
    with pytest.raises(EffprofError, match="empty"):
        account_traces(str(path))
    data = bytearray(gzip.compress(os.urandom(1000) + WHOLE))
    data[700:720] = b"\xff" * 20
    path.write_bytes(bytes(data))
    with pytest.raises(EffprofError):
        account_traces(str(path))


def test_members_and_padding_of_gzip(tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(WHOLE[:5000]) + gzip.compress(WHOLE[5000:]) + b"\0" * 512)
    found = account_traces(str(path))
    assert found.ranks[3].events == 200
    assert not found.lost_bytes


def test_an_event_in_the_middle_that_is_no_json(tmp_path: Path) -> None:
    middle = WHOLE.index(b"}}", len(WHOLE) // 2) + 2
    with pytest.raises(EffprofError, match="damaged after event"):
        account_traces(write(tmp_path / "t.json", WHOLE[:middle] + b', {"ph" "X"}' + WHOLE[middle:]))


LIMITED = """
import resource, sys
from effprof.errors import EffprofError
from effprof.trace.account import account_traces
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    account_traces(sys.argv[1])
    print("read")
except EffprofError as error:
    print(error.message)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base, file=sys.stderr)
"""


def run_limited(path: str) -> tuple[str, float, float]:
    """(what it says, MiB that it grew by, seconds) in a process of its own."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip(), int(done.stderr.split()[-1]) / 1024, time.monotonic() - began


@pytest.mark.parametrize(
    ("head", "block", "megabytes", "says"),
    [
        (HEAD, b" ", 500, "no event ends within"),
        (HEAD + b'{"ph": "X", "name": "', b"a", 500, "no event ends within"),
        (HEAD + b'{"ph": "X", "ts": ', b"9", 500, "no event ends within"),
        (HEAD + b'{"ph": "X", "args": {"a": [', b"1,", 500, "no event ends within"),
        (b'{"a": "', b"b", 500, "no list of traceEvents"),
        (HEAD, b'{"ph":"X"},', 500, "expands more than"),
        (HEAD, b"{},", 500, "expands more than"),
        (HEAD + b"{}", b"]", 500, "follow the events"),
    ],
    ids=["blanks", "string", "digits", "list", "frame", "events", "empty events", "behind"],
)
def test_bombs(tmp_path: Path, head: bytes, block: bytes, megabytes: int, says: str) -> None:
    said, grown_mib, seconds = run_limited(bomb(tmp_path / "t.json.gz", head, block, megabytes))
    assert says in said
    assert grown_mib < 200
    assert seconds < 60


@pytest.mark.parametrize("digits", [400, 1_000_000])
def test_long_numbers(tmp_path: Path, digits: int) -> None:
    for number in (b"9" * digits, b"-" + b"9" * digits, b"0." + b"1" * digits, b"1e" + b"9" * digits):
        event = (
            b'{"ph": "X", "cat": "kernel", "name": "k", "ts": ' + number + b', "dur": 1, "args": {"bytes": ' + number
        )
        began = time.monotonic()
        found = account_traces(write(tmp_path / "t.json", WHOLE[:-2] + b"," + event + b"}}]}"))
        assert time.monotonic() - began < 10
        assert found.ranks[3].compute_s >= 1e-3


def test_random_damage_never_is_a_defect(tmp_path: Path) -> None:
    """Bytes flipped anywhere: an account or an EffprofError, nothing else."""
    import random

    random.seed(5)
    path = tmp_path / "t.json"
    outcomes: dict[str, int] = {}
    for _ in range(150):
        data = bytearray(WHOLE)
        for _ in range(random.choice([1, 1, 3, 20])):
            data[random.randrange(len(data))] = random.randrange(256)
        path.write_bytes(bytes(data))
        try:
            account_traces(str(path))
            outcomes["read"] = outcomes.get("read", 0) + 1
        except EffprofError as error:
            outcomes["refused" if str(path) in error.message else "unnamed"] = outcomes.get("refused", 0) + 1
    assert outcomes.get("read", 0) > 20
    assert outcomes.get("refused", 0) > 5
    assert "unnamed" not in outcomes


def test_strange_frames(tmp_path: Path) -> None:
    frames: list[dict[str, Any]] = [
        {"distributedInfo": {"rank": 10**30}}, {"distributedInfo": {"rank": -1}}, {"distributedInfo": {"rank": True}},
        {"baseTimeNanoseconds": "x"}, {"baseTimeNanoseconds": 10**40}, {"deviceProperties": 5},
        {"deviceProperties": [1, {"name": 7, "id": 0}]},
    ]  # fmt: skip
    for frame in frames:
        path = write(tmp_path / "t.json", {**frame, "traceEvents": [kernel("a_gemm", 0, 5)]})
        assert account_traces(path).ranks[0].compute_s == pytest.approx(5e-6)
