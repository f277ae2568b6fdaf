"""Bad input ends with exit code 2 and one or two lines that say what is wrong and what to do, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effprof.cli.main import main

NOBODY = 65534


def rank_log(path: Path) -> Path:
    return path / "attempt-000" / "rank-00000.ndjson"


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def edit_steps(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the first block of steps; what Python's json writes for NaN and infinity is part of the test."""

    def changed(lines: list[str]) -> list[str]:
        index = next(i for i, line in enumerate(lines) if '"steps"' in line)
        block = json.loads(lines[index])
        change(block["columns"])
        lines[index] = json.dumps(block)
        return lines

    edit(rank_log(path), changed)


def no_such_path(path: Path) -> Path:
    return path / "nowhere"


def empty_directory(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def a_directory_of_something_else(path: Path) -> Path:
    (path / "other").mkdir()
    (path / "other" / "notes.txt").write_text("hello")
    return path / "other"


def a_file_that_is_no_log(path: Path) -> Path:
    (path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    return path / "picture.png"


def json_that_is_no_log(path: Path) -> Path:
    (path / "package.json").write_text('{"name": "something", "schema": "other/1"}\n')
    return path / "package.json"


def an_empty_log(path: Path) -> Path:
    rank_log(path).write_bytes(b"")
    return path


def newer_log(path: Path) -> Path:
    edit(rank_log(path), lambda lines: [lines[0].replace("effprof.log/1", "effprof.log/2"), *lines[1:]])
    return path


def newer_run_record(path: Path) -> Path:
    edit(path / "run.json", lambda lines: [line.replace("effprof.run/1", "effprof.run/7") for line in lines])
    return path


def a_damaged_run_record(path: Path) -> Path:
    (path / "run.json").write_text('{"schema": "effprof.run/1", "id": ')
    return path


def cut_inside_its_first_line(path: Path) -> Path:
    rank_log(path).write_bytes(rank_log(path).read_bytes()[:60])
    return path


def two_run_ids(path: Path) -> Path:
    edit(rank_log(path), lambda lines: [lines[0].replace("hand-made", "another"), *lines[1:]])
    return path


def time_that_is(value: float) -> Callable[[Path], Path]:
    def altered(path: Path) -> Path:
        def change(columns: dict[str, Any]) -> None:
            columns["forward_ns"][2] = value

        edit_steps(path, change)
        return path

    altered.__name__ = f"a_time_of_{value}"
    return altered


def steps_out_of_order(path: Path) -> Path:
    edit_steps(path, lambda columns: columns["end_ns"].reverse())
    return path


CASES = {
    no_such_path: "no such file or directory",
    empty_directory: "empty directory",
    a_directory_of_something_else: "not a run directory",
    a_file_that_is_no_log: "not an effprof log",
    json_that_is_no_log: "not an effprof log",
    an_empty_log: "cut inside its first line",
    newer_log: "effprof.log/2",
    newer_run_record: "effprof.run/7",
    a_damaged_run_record: "not effprof's run.json",
    cut_inside_its_first_line: "cut inside its first line",
    two_run_ids: "records of 2 runs in one directory",
    time_that_is(float("nan")): "not finite",
    time_that_is(float("inf")): "not finite",
    time_that_is(float("-inf")): "not finite",
    time_that_is(1e300): "not finite",
    time_that_is(-5.0): "negative",
    steps_out_of_order: "out of order",
}


def assert_refused(code: int, out: str, err: str, expected: str) -> None:
    assert code == 2, err
    assert out == ""
    assert err.startswith("effprof: ")
    assert expected in err
    assert len(err.strip().splitlines()) == 2, "what is wrong, then what to do"
    assert "Traceback" not in err


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", ["analyze", "compare", "recommend", "report"])
def test_refused(
    make: Callable[[Path], Path], command: str, simple_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = str(make(simple_run.path))
    code = main([command, bad, bad] if command == "compare" else [command, bad])
    assert_refused(code, *capsys.readouterr(), CASES[make])


@pytest.mark.parametrize("locked", ["attempt-000/rank-00000.ndjson", "run.json", "attempt-000", "."])
def test_no_permission(locked: str, simple_run: Any) -> None:
    target = simple_run.path / locked
    target.chmod(0o000)
    try:
        done = analyze_as_nobody(simple_run.path)
    finally:
        target.chmod(0o755)
    assert_refused(done.returncode, done.stdout, done.stderr, "no permission")


def analyze_as_nobody(path: Path) -> subprocess.CompletedProcess[str]:
    """Root may read anything: so it runs the command once, which loads all modules, and again as another user."""
    drop = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})" if os.getuid() == 0 else ""
    script = (
        "import contextlib, io, os, sys\n"
        "from effprof.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        f"    main(['analyze', {str(path)!r}])\n"
        f"{drop}\n"
        f"sys.exit(main(['analyze', {str(path)!r}]))\n"
    )
    if drop:
        # pytest's own directories above the run are for root alone
        for parent in path.parents:
            if parent.name.startswith(("pytest-", "test_")):
                parent.chmod(0o755)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("option", "value"), [("--seq", "1024"), ("--devices", "8"), ("--dtype", "bf16")])
@pytest.mark.parametrize("command", ["analyze", "compare"])
def test_facts_of_another_tool_s_log_are_refused_for_a_run(
    command: str, option: str, value: str, tmp_path: Path, hand_made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 10)
    runs = [str(run.path)] * (2 if command == "compare" else 1)
    assert main([command, *runs, option, value]) == 2
    assert f"{option}: for other tools' logs" in capsys.readouterr().err
