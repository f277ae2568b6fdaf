"""`effprof report` as people run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from effprof.cli.main import main


def test_writes_one_html_file(simple_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "report.html"
    assert main(["report", str(simple_run.path), "-o", str(target)]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"effprof: wrote {target}\n", "")
    source = target.read_text(encoding="utf-8")
    assert source.startswith("<!doctype html>")
    assert "41.0 %" in source
    assert '"step_time"' in source
    assert main(["report", str(simple_run.path), "-o", str(target)]) == 0  # written again over itself


def test_lies_in_the_run_s_directory_by_default(simple_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    log = simple_run.path / "attempt-000" / "rank-00000.ndjson"
    for given in (simple_run.path, simple_run.path / "run.json", log):
        assert main(["report", str(given)]) == 0
    assert (simple_run.path / "report.html").is_file()
    assert (log.parent / "report.html").is_file()
    assert str(simple_run.path / "report.html") in capsys.readouterr().out
    assert main(["analyze", str(simple_run.path)]) == 0  # which still reads as a run


def test_the_newest_of_several_runs_is_taken(
    tmp_path: Path, hand_made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        run = hand_made(tmp_path / "runs" / name, name).record()
        run.rank([run.step()] * 30)
    assert main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "r.html")]) == 0
    assert "holds 2 runs" in capsys.readouterr().err


def test_a_peak_can_be_given(simple_run: Any, tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    assert main(["report", str(simple_run.path), "-o", str(target), "--peak-tflops", "0.002"]) == 0
    assert "20.5 %" in target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/no/such/run"], "no such file or directory"),
        (["RUN", "--peak-tflops", "-1"], "not a peak"),
        (["RUN", "-o", "/no/such/directory/r.html"], "give a path that can be written"),
        (["RUN", "-o", "NOTES"], "exists and is no .html file"),
    ],
)
def test_refusals_are_two_lines(
    simple_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    places = {"RUN": str(simple_run.path), "NOTES": str(notes)}
    assert main(["report", *(places.get(word, word) for word in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.splitlines()) <= 2
    assert notes.read_text() == "mine"


def test_reports_a_trace(tmp_path: Path) -> None:
    shared = Path(__file__).parents[4] / "shared" / "traces" / "hta_nccl.json.gz"
    if not shared.exists():
        pytest.skip("../shared/traces is not here")
    target = tmp_path / "trace.html"
    assert main(["report", str(shared), "-o", str(target)]) == 0
    assert "Inside the kernel window" in target.read_text(encoding="utf-8")


def test_needs_no_torch(simple_run: Any, tmp_path: Path) -> None:
    script = (
        "import sys; from effprof.cli.main import main; "
        f"main(['report', {str(simple_run.path)!r}, '-o', {str(tmp_path / 'r.html')!r}]); "
        "print(sorted({'torch', 'transformers', 'pytorch_lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
