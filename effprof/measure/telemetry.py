"""Starts the node's sampler process, watches it without ever waiting for it, and restarts it when a call hangs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import effprof
from effprof.measure.sampler_process import DISCOVERY, FAILED, READING, SAMPLED
from effprof.runlog.schema import Event

MAX_RESTARTS = 3
# A probe that hangs twice is left out of later starts.
MAX_HANGS = 2
# Importing from a busy file system, or waking up a driver that nothing else keeps loaded, can take this long.
START_LIMIT_S = 60.0
HANG_LIMIT_S = 10.0

# Names that mean something to the training process's libraries or interpreter, and nothing good to a sampler.
_NOT_PASSED_ON = ("CUDA_", "NCCL_", "TORCH_", "PYTORCH_", "KINETO_", "COVERAGE_", "COV_CORE_")
_NOT_PASSED_ON_EITHER = ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONVERBOSE", "PYTHONPROFILEIMPORTTIME")


class Sampler:
    """The running sampler of this node. Made by `start_sampler`.

    `check` is to be called about once a second, from one thread; it never waits.
    """

    def __init__(self, command: list[str], environment: dict[str, str], period_s: float) -> None:
        self._command = command
        self._environment = environment
        self._hang_limit_s = HANG_LIMIT_S + 2 * period_s
        self._process: subprocess.Popen[bytes] | None = None
        self._status = -1  # the end of the pipe on which the sampler says what it does
        self._heard = b""
        self._heard_at_s = 0.0
        self._reading = ""
        self._has_sampled = False
        self._failure = ""
        self._restarts = 0
        self._hangs: dict[str, int] = {}
        self._left_out: list[str] = []
        self._buried: list[subprocess.Popen[bytes]] = []
        self._stopped = False
        self._launch()

    @property
    def pid(self) -> int | None:
        """Process id of the sampler, None where it is given up."""
        return self._process.pid if self._process is not None else None

    def check(self) -> list[Event]:
        """Look after the sampler; returns what is worth a line in the log."""
        self._buried = [process for process in self._buried if process.poll() is None]
        if self._process is None or self._stopped:
            return []
        try:
            return self._check(self._process)
        except Exception as error:
            self._give_up()
            return [_event("telemetry_disabled", f"telemetry is off ({type(error).__name__}: {error})")]

    def stop(self, timeout_s: float = 2.0) -> None:
        """Have the sampler take its last sample and close its log; kill it if that takes longer than `timeout_s`."""
        process, self._stopped = self._process, True
        if process is None:
            return
        with contextlib.suppress(OSError, ValueError):
            assert process.stdin is not None
            process.stdin.write(b"stop\n")
            process.stdin.close()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._give_up()

    def _check(self, process: subprocess.Popen[bytes]) -> list[Event]:
        self._listen()
        if process.poll() is not None:
            reason = self._failure or f"ended with code {process.returncode}"
            return self._restart(f"the telemetry sampler {reason}")
        silent_s = time.monotonic() - self._heard_at_s
        if silent_s > (self._hang_limit_s if self._has_sampled else START_LIMIT_S):
            self._hangs[self._reading] = self._hangs.get(self._reading, 0) + 1
            return self._restart(f"the telemetry sampler hangs in {self._reading} for {silent_s:.0f} s")
        return []

    def _restart(self, reason: str) -> list[Event]:
        probe = self._reading
        self._give_up()
        if self._restarts >= MAX_RESTARTS:
            return [_event("telemetry_disabled", f"{reason}: telemetry is off after {MAX_RESTARTS} restarts")]
        self._restarts += 1
        left_out = ""
        if self._hangs.get(probe, 0) >= MAX_HANGS and probe not in self._left_out:
            self._left_out.append(probe)
            left_out = " with the host's readings only" if probe == DISCOVERY else f" without the probe {probe}"
        self._launch()
        return [_event("telemetry_restarted", f"{reason}: restarted{left_out}", probe=probe, restarts=self._restarts)]

    def _launch(self) -> None:
        reader, writer = os.pipe()
        try:
            os.set_blocking(reader, False)
            without = [word for probe in self._left_out for word in ("--without", probe)]
            self._process = subprocess.Popen(
                [*self._command, "--status", str(writer), *without],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writer,),
                cwd="/",  # nothing in the working directory may stand in for a module
                env=self._environment,
                start_new_session=True,  # Ctrl-C and Ctrl-Z in the terminal are for the training
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._status = reader
        self._heard = b""
        self._heard_at_s = time.monotonic()
        self._reading = "start"
        self._has_sampled = False
        self._failure = ""

    def _listen(self) -> None:
        """Take what the sampler has said since the last check."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._status, 65536):
                self._heard += chunk
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == READING:
                self._reading = rest
            elif word == SAMPLED:
                self._has_sampled = True
            elif word == FAILED:
                self._failure = f"failed ({rest})"
        if lines:
            self._heard_at_s = time.monotonic()

    def _give_up(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.kill()
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
        with contextlib.suppress(OSError):
            os.close(self._status)
        if process.poll() is None:
            # one that sits in the kernel can't be killed; it is collected when it comes out
            self._buried.append(process)


def start_sampler(
    attempt_dir: str | os.PathLike[str],
    *,
    run_id: str,
    node: int,
    attempt: int,
    pid: int,
    period_s: float = 1.0,
) -> Sampler | None:
    """Start the sampler of this node; to be called by the node's first rank only.

    Args:
        attempt_dir: where `node-NNNNN.ndjson` goes.
        pid: the training process, which the sampler watches and dies with.
        period_s: seconds between samples.

    Returns:
        None, with one warning, where it could not be started.
    """
    try:
        directory = Path(attempt_dir).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        command = [_interpreter(), "-m", "effprof.measure.sampler_process", "--directory", str(directory)]
        command += ["--run-id", run_id, "--node", str(node), "--attempt", str(attempt)]
        command += ["--pid", str(pid), "--period", str(period_s)]
        return Sampler(command, _environment(), period_s)
    except Exception as error:
        warnings.warn(f"effprof: no telemetry, its sampler did not start ({error})", stacklevel=2)
        return None


def _interpreter() -> str:
    """A Python like this one; an application that embeds Python names itself as the executable.

    Raises:
        FileNotFoundError: none was found.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in (
        sys.executable or "",
        os.path.join(sys.exec_prefix, "bin", version),
        getattr(sys, "_base_executable", "") or "",
        shutil.which(version) or "",
    ):
        if os.path.basename(name).lower().startswith(("python", "pypy")) and os.access(name, os.X_OK):
            return name
    raise FileNotFoundError(f"no {version} beside {sys.executable or 'this program'}")


def _environment() -> dict[str, str]:
    """This process's environment without what changes the interpreter or a library, and with its import path."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_NOT_PASSED_ON) and name not in _NOT_PASSED_ON_EITHER
    }
    package = str(Path(effprof.__file__).absolute().parent.parent)
    paths = [os.path.abspath(path) for path in sys.path if path and os.pathsep not in path]
    # a source tree that this process runs from, or a path it added itself, has to be known there too
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*paths, package]))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _event(code: str, message: str, **data: object) -> Event:
    return Event(name="warning", monotonic_ns=time.perf_counter_ns(), message=message, data={"code": code, **data})
