"""The sampler as a real process: it samples, survives signals, is restarted, and dies with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import psutil
import pytest

from effprof.measure import sampler_process, telemetry
from effprof.measure.sampler_process import NodeLogFile
from effprof.measure.telemetry import Sampler, start_sampler
from effprof.runlog.schema import End, Header, Line, Probe, Telemetry

DECODER = msgspec.json.Decoder(Line)


def read_lines(directory: Path) -> list[Line]:
    """The whole lines of the node's log, oldest segment first."""
    lines: list[Line] = []
    for path in sorted(directory.glob("node-00000*.ndjson"), key=lambda path: (len(path.suffixes) < 2, path.name)):
        lines += [DECODER.decode(line) for line in path.read_bytes().split(b"\n")[:-1] if line]
    return lines


def samples(directory: Path) -> list[Telemetry]:
    return [line for line in read_lines(directory) if isinstance(line, Telemetry)]


def wait_until(is_true: Callable[[], object], limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Sampler]]:
    started: list[Sampler] = []

    def begin(period_s: float = 0.1) -> Sampler:
        sampler = start_sampler(tmp_path, run_id="run", node=0, attempt=2, pid=os.getpid(), period_s=period_s)
        assert sampler is not None
        started.append(sampler)
        return sampler

    yield begin
    for sampler in started:
        sampler.stop(0.5)


@pytest.fixture
def install_probe(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a third party's probe, whose `read` runs the given code, the way one is installed."""

    def install(body: str) -> None:
        directory = tmp_path_factory.mktemp("site")
        write_probe(directory, body)
        monkeypatch.syspath_prepend(str(directory))

    return install


def write_probe(directory: Path, body: str) -> None:
    """A module with a probe and the entry point that names it."""
    source = f"""
        import os, time
        from effprof.hardware.probes.base import ProbeDevice, Reading

        class PROBE:
            name = "thirdparty"
            vendor = "other"
            reason = ""
            def __init__(self, pids): self.reads = 0
            @classmethod
            def is_present(cls, vendors): return True
            def devices(self): return [ProbeDevice(key="card-0", name="A card", vendor="other")]
            def describe(self): return {{"power_w": {{"unit": "W", "scope": "board", "kind": "gauge"}}}}
            def close(self): pass
            def read(self):
                self.reads += 1
                {body}
    """
    (directory / "thirdparty_probe.py").write_text(textwrap.dedent(source))
    info = directory / "thirdparty_probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty-probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[effprof.probes]\nthirdparty = thirdparty_probe:PROBE\n")


def test_samples_the_host_and_the_training_process(start: Callable[..., Sampler], tmp_path: Path) -> None:
    sampler = start()
    wait_until(lambda: len(samples(tmp_path)) >= 4)
    assert sampler.check() == []
    sampler.stop()
    lines = read_lines(tmp_path)
    header = lines[0]
    assert isinstance(header, Header)
    assert (header.role, header.run_id, header.node, header.attempt) == ("node", "run", 0, 2)
    assert header.pid != os.getpid()
    described = {line.probe: line for line in lines if isinstance(line, Probe)}
    assert {"cpu", "sampler"} <= set(described)
    assert described["cpu"].readings["memory_used_bytes"]["unit"] == "bytes"
    last = samples(tmp_path)[-1]
    rss_bytes = last.values[f"pid-{os.getpid()}.process_rss_bytes"]
    assert rss_bytes is not None
    assert abs(rss_bytes - psutil.Process().memory_info().rss) < 0.5 * rss_bytes
    assert last.values["host.load_1m"] is not None
    assert 0 < (last.values["host.sample_s"] or 0) < 5
    gaps_s = [(b.monotonic_ns - a.monotonic_ns) / 1e9 for a, b in pairwise(samples(tmp_path)[:-1])]
    assert min(gaps_s) > 0.02
    assert isinstance(lines[-1], End)


def test_wall_time_follows_from_the_header(start: Callable[..., Sampler], tmp_path: Path) -> None:
    before_s = time.time()
    sampler = start()
    wait_until(lambda: samples(tmp_path))
    sampler.stop()
    header, sample = read_lines(tmp_path)[0], samples(tmp_path)[-1]
    assert isinstance(header, Header)
    assert before_s <= header.wall_s + (sample.monotonic_ns - header.monotonic_ns) / 1e9 <= time.time()
    assert sample.monotonic_ns <= time.perf_counter_ns()  # the same clock as the training process's


def test_reasons_are_given_when_they_are_new(
    start: Callable[..., Sampler], tmp_path: Path, install_probe: Callable[[str], None]
) -> None:
    body = """return [("card-0", Reading("power_w", None if self.reads < 3 else float("nan"), "W", "board", "gauge",
                        "no_permission" if self.reads < 3 else ""))]"""
    install_probe(body)
    start()
    wait_until(lambda: len(samples(tmp_path)) >= 4)
    seen = samples(tmp_path)
    assert all(sample.values["card-0.power_w"] is None for sample in seen)  # a non-finite value travels as null
    assert seen[0].missing["card-0.power_w"] == "no_permission"
    assert "card-0.power_w" not in seen[1].missing
    assert seen[2].missing["card-0.power_w"] == "non_finite"


def test_a_probe_that_raises_leaves_the_others_alone(
    start: Callable[..., Sampler], tmp_path: Path, install_probe: Callable[[str], None]
) -> None:
    install_probe('raise OSError("card fell out")')
    start()
    wait_until(lambda: len(samples(tmp_path)) >= 3)
    assert samples(tmp_path)[0].missing["thirdparty"] == "OSError: card fell out"
    assert samples(tmp_path)[2].values["host.memory_used_bytes"]


def test_a_probe_that_hangs_is_killed_and_then_left_out(
    start: Callable[..., Sampler],
    tmp_path: Path,
    install_probe: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry, "HANG_LIMIT_S", 0.5)
    install_probe("time.sleep(3600) if self.reads > 2 else None; return []")
    sampler = start()
    first, events = sampler.pid, []

    def restarts() -> int:
        began = time.monotonic()
        events.extend(sampler.check())
        assert time.monotonic() - began < 0.5  # watching never waits
        return len(events)

    wait_until(lambda: restarts() == 2, 40)
    assert [event.data["code"] for event in events] == ["telemetry_restarted"] * 2
    assert [event.data["probe"] for event in events] == ["thirdparty"] * 2
    assert events[1].message.endswith("restarted without the probe thirdparty")
    assert sampler.pid != first
    assert not psutil.pid_exists(first or 0) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    now_ns = time.perf_counter_ns()
    wait_until(lambda: len([sample for sample in samples(tmp_path) if sample.monotonic_ns > now_ns]) > 5)
    assert sampler.check() == []
    assert len([line for line in read_lines(tmp_path) if isinstance(line, Header)]) == 3


def test_a_sampler_that_keeps_dying_is_given_up(start: Callable[..., Sampler], tmp_path: Path) -> None:
    sampler = start()
    events = []

    def kill_and_check() -> bool:
        if sampler.pid is not None:
            os.kill(sampler.pid, signal.SIGKILL)
            time.sleep(0.05)
        events.extend(sampler.check())
        return sampler.pid is None

    wait_until(kill_and_check)
    assert [event.data["code"] for event in events] == ["telemetry_restarted"] * 3 + ["telemetry_disabled"]
    assert sampler.check() == []
    sampler.stop()


def test_a_directory_that_can_not_be_written_ends_in_an_event(tmp_path: Path) -> None:
    sampler = start_sampler(tmp_path / "gone", run_id="run", node=0, attempt=0, pid=os.getpid())
    assert sampler is not None
    (tmp_path / "gone").rmdir()
    events = []

    def is_given_up() -> bool:
        events.extend(sampler.check())
        return sampler.pid is None

    wait_until(is_given_up)
    assert events[-1].data["code"] == "telemetry_disabled"
    assert "FileNotFoundError" in events[-1].message


def test_no_interpreter_means_no_sampler_and_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/app/bin/embedding-app")
    monkeypatch.setattr(sys, "_base_executable", "/opt/app/bin/embedding-app")
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="its sampler did not start"):
        assert start_sampler(tmp_path, run_id="run", node=0, attempt=0, pid=os.getpid()) is None


def test_an_embedding_application_gets_the_interpreter_beside_it(
    start: Callable[..., Sampler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/app/bin/embedding-app")
    start()
    wait_until(lambda: samples(tmp_path))


def test_interrupts_are_for_the_training(start: Callable[..., Sampler], tmp_path: Path) -> None:
    sampler = start()
    wait_until(lambda: samples(tmp_path))
    pid = sampler.pid
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    now_ns = time.perf_counter_ns()
    wait_until(lambda: samples(tmp_path)[-1].monotonic_ns > now_ns)
    assert sampler.check() == []
    assert sampler.pid == pid


def test_does_not_see_the_training_process_settings(
    start: Callable[..., Sampler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.setenv("PYTHONINSPECT", "1")
    sampler = start()
    wait_until(lambda: samples(tmp_path))
    environment = psutil.Process(sampler.pid).environ()
    assert not [name for name in environment if name.startswith("CUDA_")]
    assert "PYTHONINSPECT" not in environment


def test_starts_light(tmp_path: Path) -> None:
    code = "import sys, effprof.measure.sampler_process, effprof.hardware.probes.base as base; base.available_probes();"
    code += "print([name for name in ('torch', 'numpy', 'lightning', 'pytorch_lightning') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.strip() == "[]"


PARENT = """
import os, sys, time
from effprof.measure.telemetry import start_sampler
sampler = start_sampler(sys.argv[1], run_id="run", node=0, attempt=0, pid=os.getpid(), period_s=1.0)
print(sampler.pid, flush=True)
if "--fork" in sys.argv and os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


@pytest.mark.parametrize("forks", [False, True])
def test_dies_with_a_killed_parent(tmp_path: Path, forks: bool) -> None:
    """A data loader's worker that outlives the training process holds the pipe open: the pipe alone is not enough."""
    words = [sys.executable, "-c", PARENT, str(tmp_path), *(["--fork"] if forks else [])]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    worker = int(parent.stdout.readline()) if forks else None
    try:
        wait_until(lambda: samples(tmp_path))
        parent.kill()
        parent.wait()
        began = time.monotonic()
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 2.0)
        assert time.monotonic() - began < 2.0
        assert not any(isinstance(line, End) for line in read_lines(tmp_path))  # it did not end in order
    finally:
        parent.kill()
        if worker:
            os.kill(worker, signal.SIGKILL)


def test_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """The kernel's death signal comes with the end of a thread; the process itself is still there."""
    import threading

    started: list[Sampler | None] = []

    def begin() -> None:
        started.append(start_sampler(tmp_path, run_id="run", node=0, attempt=0, pid=os.getpid(), period_s=0.1))
        wait_until(lambda: samples(tmp_path))

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    [sampler] = started
    assert sampler is not None
    count = len(samples(tmp_path))
    wait_until(lambda: len(samples(tmp_path)) > count + 5)
    assert sampler.check() == []
    sampler.stop()


def test_stop_does_not_wait_for_a_probe_that_hangs(
    start: Callable[..., Sampler], tmp_path: Path, install_probe: Callable[[str], None]
) -> None:
    install_probe("time.sleep(3600) if self.reads > 1 else None; return []")
    sampler = start()
    wait_until(lambda: samples(tmp_path))
    time.sleep(0.3)
    began = time.monotonic()
    sampler.stop(0.5)
    assert time.monotonic() - began < 1.5
    sampler.stop()


def test_log_repairs_a_torn_line_and_rotates(tmp_path: Path) -> None:
    header = Header(run_id="run", role="node", rank=0, monotonic_ns=0, wall_s=0.0, process_start_s=0.0)
    (tmp_path / "node-00000.ndjson").write_bytes(b'{"type":"telemetry","monoto')
    log = NodeLogFile(tmp_path, header, rotate_bytes=2000)
    log.describe([Probe(probe="cpu")])
    for index in range(100):
        log.write(Telemetry(monotonic_ns=index, values={"host.load_1m": 0.5}))
    log.close()
    paths = sorted(tmp_path.glob("node-00000.*.ndjson"))
    assert len(paths) > 2
    for number, path in enumerate([*paths, tmp_path / "node-00000.ndjson"]):
        lines = path.read_bytes().split(b"\n")[1 if number == 0 else 0 : -1]
        first = DECODER.decode(lines[0])
        assert isinstance(first, Header)
        assert first.segment == number
        assert isinstance(DECODER.decode(lines[1]), Probe)
    kept = [
        DECODER.decode(line).monotonic_ns
        for path in [*paths, tmp_path / "node-00000.ndjson"]
        for line in path.read_bytes().split(b"\n")
        if b"host.load_1m" in line
    ]
    assert kept == list(range(100))


def test_refuses_to_run_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    words = ["--directory", str(tmp_path), "--run-id", "run", "--pid", str(gone.pid)]
    done = subprocess.run([sys.executable, "-m", sampler_process.__name__, *words], timeout=30, check=False)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
