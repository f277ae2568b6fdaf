"""`effprof watch` beside a training that runs: figures, view, exporters, and the ways it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from effprof.analysis.analyze import analyze
from effprof.analysis.current import current
from effprof.cli.main import main
from effprof.reports import watch as reports
from effprof.reports.opentelemetry import export
from effprof.runlog.reader import open_run
from effprof.runlog.tail import RunTail

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "effprof.cli.main", "watch"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A training that goes on until the tests have looked at it."""
    folder = tmp_path_factory.mktemp("watched")
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "examples" / "plain_loop.py"),
            "--steps",
            "100000",
            "--run-dir",
            str(folder / "run"),
        ],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log = folder / "run" / "attempt-000" / "rank-00000.ndjson"
    for _ in range(600):
        if log.exists() and b'"steps"' in log.read_bytes():
            break
        time.sleep(0.1)
    yield folder / "run"
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_looks_follow_the_training(training: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, str(training), "--json", "--interval", "0.7"], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    looks = [json.loads(process.stdout.readline()) for _ in range(4)]
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert {look["schema"] for look in looks} == {"effprof.watch/1"}
    steps = [look["step"] for look in looks]
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]
    last = looks[-1]
    assert last["ended"] == "running"
    assert last["age_s"] < 5
    assert 0 < last["mfu"]["value"] < 1
    assert last["tokens_per_s"]["median"] > 0
    assert sum(last["phases"].values()) == pytest.approx(1)
    assert last["memory_bytes"] > 1 << 20
    assert last["devices"][0]["device"] == "host"
    assert last["ranks"] == {
        "world_size": 1, "reporting": 1, "behind_steps": 0, "longest_wait_rank": None, "longest_wait_s": None,
    }  # fmt: skip


def test_prometheus_scrapes_a_running_training(training: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [*COMMAND, str(training), "--interval", "0.5", "--prometheus", str(port)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    text = ""
    for _ in range(100):
        time.sleep(0.1)
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        except OSError:
            continue
        if "effprof_mfu_ratio" in text:
            break
    process.terminate()
    process.wait()
    found = dict(re.findall(r'^(effprof_\w+)\{run="run"\} (\S+)$', text, re.MULTILINE))
    assert 0 < float(found["effprof_mfu_ratio"]) < 1
    assert float(found["effprof_step"]) > 0
    assert float(found["effprof_running"]) == 1
    assert 'effprof_phase_ratio{phase="forward",run="run"}' in text
    assert 'effprof_device_reading{device="host",reading="cpu_percent"' in text


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_the_view_in_a_terminal_is_redrawn_and_ctrl_c_ends_it(training: Path, tmp_path: Path) -> None:
    tmux = ["tmux", "-L", f"effprof-{os.getpid()}", "-f", "/dev/null"]
    words = " ".join([*COMMAND, str(training), "--interval", "0.5"])
    inside = f"cd {ROOT} && {words}; echo exit code $? > {tmp_path}/code; sleep 30"
    subprocess.run(
        [*tmux, "new-session", "-d", "-s", "w", "-x", "120", "-y", "40", inside], check=True, env=ENVIRONMENT
    )
    try:
        views = []
        for _ in range(60):
            time.sleep(0.25)
            view = subprocess.run([*tmux, "capture-pane", "-p", "-t", "w"], capture_output=True, text=True, check=True)
            if "steps' time goes" in view.stdout and view.stdout not in views:
                views.append(view.stdout)
            if len(views) == 3:
                break
        assert len(views) == 3
        for text in views:
            assert text.count("state ") == 1  # redrawn in place, not below the last one
            assert "running · step" in text
            assert "tokens/s" in text
        subprocess.run([*tmux, "send-keys", "-t", "w", "C-c"], check=True)
        for _ in range(100):
            if (tmp_path / "code").exists() and (tmp_path / "code").read_text():
                break
            time.sleep(0.1)
        assert (tmp_path / "code").read_text() == "exit code 0\n"
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def finished(tmp_path: Path, hand_made: Any, **more: Any) -> str:
    run = hand_made(tmp_path / "r").record(config={"max_steps": 30})
    for rank in range(2):
        run.rank(
            [run.step(0.1, loss=2.5, **({"input_wait": 0.04} if rank else {})) for _ in range(30)],
            rank=rank,
            world_size=2,
            lines=[run.event("nan_loss", "step 7: not finite\x1b[2J")],
            **more,
        )
    return str(run.path)


def test_a_finished_run_is_shown_once_with_what_analyze_says(
    tmp_path: Path, hand_made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished(tmp_path, hand_made)
    assert main(["watch", path, "--json"]) == 0
    (text,) = capsys.readouterr().out.splitlines()
    told = json.loads(text)
    whole = analyze(open_run(path)).efficiency
    assert told["mfu"]["value"] == whole.mfu.value
    assert told["tokens_per_s"]["median"] == whole.tokens_per_s.median
    assert (told["ended"], told["step"], told["max_steps"], told["loss"]) == ("completed", 30, 30, 2.5)
    assert told["ranks"]["longest_wait_rank"] == 1
    assert told["ranks"]["longest_wait_s"] == pytest.approx(0.04)
    assert main(["watch", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("completed · step 30 of 30 · MFU")
    assert lines[-1] == f"effprof analyze {path}"


def test_the_view_is_safe_and_narrow(tmp_path: Path, hand_made: Any) -> None:
    run = RunTail(finished(tmp_path, hand_made)).poll()
    assert run is not None
    text = reports.render(current(run, now_s=2e9))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 110
    assert "step 7: not finite" in text
    assert "2 of 2 ranks" in text
    assert "rank 1 waits longest" in text


def test_open_telemetry_collects_the_latest_look(tmp_path: Path, hand_made: Any) -> None:
    run = RunTail(finished(tmp_path, hand_made)).poll()
    assert run is not None
    watch = current(run, now_s=2e9)
    reader = InMemoryMetricReader()
    with export(reader) as show:
        show(watch)
        data = reader.get_metrics_data()
    assert data is not None
    metrics = {each.name: each for scope in data.resource_metrics[0].scope_metrics for each in scope.metrics}
    (point,) = metrics["effprof.mfu_ratio"].data.data_points
    assert (point.value, point.attributes) == (watch.mfu.value, {"run": watch.id})
    assert "effprof.memory_bytes" not in metrics or not metrics["effprof.memory_bytes"].data.data_points
    phases = {each.attributes["phase"]: each.value for each in metrics["effprof.phase_ratio"].data.data_points}
    assert phases == pytest.approx(watch.phases)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no such directory"),
        (["a.log"], "watch follows effprof's own runs"),
        (["empty", "--once"], "no log of a rank yet"),
        (["r", "--interval", "0"], "must be positive"),
        (["r", "--once", "--otel"], "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (["r", "--once", "--prometheus", "99999"], "--prometheus 99999"),
    ],
)
def test_bad_input(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    hand_made: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished(tmp_path, hand_made)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.log").write_text("iteration 1")
    monkeypatch.chdir(tmp_path)
    assert main(["watch", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) <= 2
