"""Trials as real processes: what they give, and how they end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from effprof.advise.trial import run_trial
from effprof.errors import EffprofError

TRAINING = Path(__file__).resolve().parents[2] / "support" / "recorded_training.py"
OUT_OF_MEMORY = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
bytearray(2 << 30)
"""


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_trial_gives_the_speed_and_the_losses_of_its_run(tmp_path: Path) -> None:
    segment = run_trial([sys.executable, str(TRAINING), "0.5"], {"num_workers": 2}, tmp_path / "a", seconds=1)
    assert segment.outcome == "ok"
    assert segment.metric == "tokens_per_s"
    assert segment.rate == pytest.approx(50 / 0.05, rel=0.05)
    assert len(segment.losses) == 60
    assert segment.losses[0] == pytest.approx(4.0)
    assert segment.applied == {"num_workers": 2}
    assert segment.wall_s > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OUT_OF_MEMORY, "MemoryError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("raise SystemExit('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB')", "CUDA out of"),
    ],
)
def test_running_out_of_memory_is_a_result(tmp_path: Path, text: str, said: str) -> None:
    segment = run_trial(python(text), {}, tmp_path / "a", seconds=1)
    assert segment.outcome == "out_of_memory"
    assert said in segment.reason
    assert len(segment.counts) == 0


def test_a_trial_that_does_not_end_is_ended_with_everything_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    text = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({str(mark)!r}).write_text(str(child.pid))
time.sleep(60)
"""
    began = time.monotonic()
    segment = run_trial(python(text), {}, tmp_path / "a", seconds=1, timeout_s=3)
    assert segment.outcome == "timeout"
    assert time.monotonic() - began < 30
    child = int(mark.read_text())
    # a killed process that nobody waits for takes a moment to go
    assert any(_is_gone(child) or time.sleep(0.05) for _ in range(100))


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_environment_of_a_change_is_there_when_the_process_begins(tmp_path: Path) -> None:
    text = "import os; raise SystemExit('out of memory, with ' + os.environ['MALLOC_ARENA_MAX'])"
    segment = run_trial(python(text), {"environment": {"MALLOC_ARENA_MAX": 2}}, tmp_path / "a", seconds=1)
    assert segment.reason.endswith("with 2")


def test_a_command_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(EffprofError, match="no-such-program: No such file"):
        run_trial(["no-such-program"], {}, tmp_path / "a", seconds=1)


@pytest.mark.parametrize("text", ["print('done')", "raise ValueError('no data')"])
def test_a_command_that_never_reached_the_callback_is_bad_input(tmp_path: Path, text: str) -> None:
    with pytest.raises(EffprofError) as caught:
        run_trial(python(text), {}, tmp_path / "a", seconds=1)
    assert "no effprof run appeared: is EfficiencyCallback" in str(caught.value)
    assert "output.txt" in str(caught.value)
