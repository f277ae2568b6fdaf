"""Probes that ask a vendor's command-line tool: run it without waiting, never twice at once, and kill it when it hangs.

A subclass of `ToolProbe` says which command answers and turns its text into `Sample`s; see `metax.py` for a short one.
The tool runs in its own process group with the locale C, and `read` only looks whether it has finished: a slow tool
makes readings rarer, never the sampler late. What a tool prints is parsed by the names of its columns (`tool_text.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import glob
from typing import IO, ClassVar

from effprof.hardware.probes.base import Meaning, ProbeDevice, Reading, Reason, Scope

DEADLINE_S = 8.0  # a node of eight answers within seconds; below the limit at which the sampler counts as hanging
MOST_BYTES = 4 << 20
_POLL_S = 0.02
# Where vendors put their tools, beyond PATH.
_FOLDERS = (
    *("/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin"),
    *("/opt/rocm/bin", "/opt/hyhal/bin", "/opt/habanalabs/bin", "/opt/aws/neuron/bin", "/usr/local/neuware/bin"),
    *("/opt/mxdriver/bin", "/opt/maca/bin", "/usr/local/corex/bin", "/usr/local/Ascend/driver/tools"),
)
# Words of an error that tools print, often on standard output and with exit code 0.
_COMPLAINTS: tuple[tuple[re.Pattern[str], Reason], ...] = (
    (re.compile(r"no module named", re.I), "no_tool"),
    (re.compile(r"permission|not permitted|privilege|must be (?:run as )?root|superuser", re.I), "no_permission"),
    (re.compile(r"driver|no devices?\b|not found|no such|initiali[sz]e|-80\d\d|not loaded", re.I), "no_driver"),
)

MEANINGS: dict[str, Meaning] = {
    "power_w": Meaning("W", "board", "gauge", "as the tool prints it"),
    "package_power_w": Meaning("W", "board", "gauge", "processor, graphics and neural engine together"),
    "power_limit_w": Meaning("W", "board", "gauge", "cap in force"),
    "power_percent": Meaning("percent", "board", "gauge", "of the highest power"),
    "energy_j": Meaning("J", "board", "counter", "since the driver loaded"),
    "temperature_c": Meaning("C", "board", "gauge", "chip"),
    "memory_temperature_c": Meaning("C", "board", "gauge", "memory"),
    "sm_clock_mhz": Meaning("MHz", "board", "gauge", "of the compute units, momentary"),
    "sm_clock_max_mhz": Meaning("MHz", "board", "gauge", "of the compute units, highest"),
    "memory_clock_mhz": Meaning("MHz", "board", "gauge", "momentary"),
    "utilization_percent": Meaning("percent", "board", "gauge", "share of time with work resident; nothing about MFU"),
    "tensorcore_utilization_percent": Meaning("percent", "board", "gauge", "share of the matrix units' peak"),
    "flops_per_s": Meaning("FLOP/s", "board", "gauge", "as the tool counts them"),
    "memory_used_bytes": Meaning("bytes", "board", "gauge", "all processes"),
    "memory_total_bytes": Meaning("bytes", "board", "gauge", "as the driver reports it"),
}


@dataclass(frozen=True)
class Sample:
    """What one run of a tool says of one device; a value is None where the tool prints a word for "no value".

    `reasons` says why for a value that is None by more than "not_supported".
    """

    index: str
    name: str
    values: Mapping[str, float | None]
    uuid: str | None = None
    pci_bus_id: str | None = None
    driver: str | None = None
    parent: str | None = None
    compute_units: int | None = None
    reasons: Mapping[str, Reason] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A command line and what makes samples of its output; a stream runs on and prints a sample a line."""

    arguments: tuple[str, ...]
    parse: Callable[[str], Sequence[Sample]]
    is_stream: bool = False
    name: str = ""  # in messages; the program's by default

    @property
    def title(self) -> str:
        """What a message calls it."""
        return self.name or self.arguments[0]


def find_tool(name: str) -> str | None:
    """Path of a vendor's tool, on PATH or where vendors install it."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(_FOLDERS))


class ToolRunner:
    """One command, run again and again, at most once at a time."""

    def __init__(self, arguments: Sequence[str], deadline_s: float = DEADLINE_S) -> None:
        self._arguments = list(arguments)
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._began = 0.0

    def start(self) -> Reason:
        """Start the command unless it runs."""
        if self._process is not None:
            return ""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 — open until the command has ended
        reason = self._launch(self._output)
        if reason:
            self._forget()
        return reason

    def _launch(self, output: IO[bytes] | int) -> Reason:
        self._began = time.monotonic()
        try:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C", "LANG": "C", "COLUMNS": "200"},
                start_new_session=True,
            )
        except FileNotFoundError:
            return "no_tool"
        except PermissionError:
            return "no_permission"
        except OSError:
            return "error"
        return ""

    def poll(self) -> tuple[str | None, Reason]:
        """What the command has printed, if it has ended: (text, ""); (None, "") while it runs; (None, why) else."""
        process, output = self._process, self._output
        if process is None or output is None:
            return None, "not_sampled_yet"
        if process.poll() is None:
            if time.monotonic() - self._began < self._deadline_s:
                return None, ""
            self.stop()
            return None, "timeout"
        output.seek(0)
        text = output.read(MOST_BYTES).decode("utf-8", errors="replace")
        self._forget()
        return text, ""

    def wait(self) -> tuple[str | None, Reason]:
        """Run the command once and wait for it, up to the deadline."""
        reason = self.start()
        if reason:
            return None, reason
        while True:
            text, reason = self.poll()
            if text is not None or reason:
                return text, reason
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Kill the command and whatever it started."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # one that hangs in the driver cannot even be killed: it is left behind, not waited for
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        self._forget()

    def _forget(self) -> None:
        for file in (self._output, None if self._process is None else self._process.stdout):
            if file is not None:
                file.close()
        self._process = self._output = None


class StreamRunner(ToolRunner):
    """One command that prints a line a period and does not end by itself."""

    _rest = b""

    def start(self) -> Reason:
        """Start the command unless it runs."""
        if self._process is not None:
            return ""
        self._rest = b""
        reason = self._launch(subprocess.PIPE)
        if self._process is not None and self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)
        return reason

    def poll(self) -> tuple[str | None, Reason]:
        """The last whole line since the last call; (None, "") while there is no new one."""
        process = self._process
        if process is None or process.stdout is None:
            return None, "not_sampled_yet"
        has_ended = process.poll() is not None
        data = self._rest + (process.stdout.read() or b"")
        lines, end, self._rest = data.rpartition(b"\n")
        self._rest = self._rest[-MOST_BYTES:]
        if end:
            self._began = time.monotonic()
        elif has_ended or time.monotonic() - self._began > self._deadline_s:
            self.stop()
            return (self._rest.decode("utf-8", errors="replace"), "") if has_ended else (None, "timeout")
        return (lines.rpartition(b"\n")[2].decode("utf-8", errors="replace"), "") if end else (None, "")


def complaint(text: str, tool: str) -> str:
    """Reason and first line of an output that holds no device."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "printed nothing")
    reason = next((why for pattern, why in _COMPLAINTS if pattern.search(text)), "parse")
    return f"{reason}: {tool}: {first[:200]}"


class ToolProbe:
    """Devices of one family, through the first of `commands` whose tool is installed."""

    name: ClassVar[str]
    vendor: ClassVar[str]
    commands: ClassVar[tuple[Command, ...]]
    pci_vendor: ClassVar[str] = ""
    nodes: ClassVar[tuple[str, ...]] = ()  # globs of device files, for containers without sysfs
    # What this family's reading means where it is not what MEANINGS says: name → (scope, description).
    meanings: ClassVar[Mapping[str, tuple[Scope, str]]] = {}

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self.reason = ""
        self._closed = False
        self._runner: ToolRunner | None = None
        self._parse: Callable[[str], Sequence[Sample]] | None = None
        self._devices: list[ProbeDevice] = []
        self._names: list[str] = []
        self._find()

    @classmethod
    def is_present(cls, pci_vendors: frozenset[str]) -> bool:
        """Whether a device of this family is on the bus, or its device file is there."""
        return cls.pci_vendor in pci_vendors or any(glob(pattern) for pattern in cls.nodes)

    def devices(self) -> list[ProbeDevice]:
        return self._devices

    def describe(self) -> dict[str, dict[str, str]]:
        return {name: self._meaning(name).as_dict() for name in self._names}

    def read(self) -> list[tuple[str, Reading]]:
        """What the tool has printed since the last call; nothing while it still runs."""
        if self._closed or self._runner is None or self._parse is None:
            return []
        text, reason = self._runner.poll()
        if text is None:
            if reason == "not_sampled_yet":
                reason = self._runner.start()
            missing = [self._reading(name, None, reason) for name in self._names] if reason else []
            return [(device.key, reading) for device in self._devices for reading in missing]
        self._runner.start()
        return list(self._readings(self._samples(text)))

    def close(self) -> None:
        self._closed = True
        if self._runner is not None:
            self._runner.stop()

    def _find(self) -> None:
        wanted = [command.title for command in self.commands]
        for command in self.commands:
            path = find_tool(command.arguments[0])
            if path is None:
                continue
            runner = (StreamRunner if command.is_stream else ToolRunner)([path, *command.arguments[1:]])
            text, reason = runner.wait()
            if text is None:
                self.reason = f"{reason}: {command.title}"
                continue
            self._parse = command.parse
            samples = self._samples(text)
            if not samples:
                runner.stop()
                self.reason = complaint(text, command.title)
                continue
            self.reason, self._runner = "", runner
            self._devices = [self._device(sample) for sample in samples]
            self._names = list(dict.fromkeys(name for sample in samples for name in sample.values))
            return
        self.reason = self.reason or f"no_tool: none of {', '.join(dict.fromkeys(wanted))} is installed"

    def _samples(self, text: str) -> Sequence[Sample]:
        assert self._parse is not None
        try:
            return [self._identified(sample) for sample in self._parse(text)]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return []

    def _identified(self, sample: Sample) -> Sample:
        """The sample with what another command of the family knows of its device."""
        return sample

    def _readings(self, samples: Sequence[Sample]) -> list[tuple[str, Reading]]:
        said = {self._device(sample).key: sample for sample in samples}
        readings = []
        for device in self._devices:
            sample = said.get(device.key)
            for name in self._names:
                value = None if sample is None else sample.values.get(name)
                why: Reason = ""
                if value is None:
                    why = "parse" if sample is None else sample.reasons.get(name, "not_supported")
                readings.append((device.key, self._reading(name, value, why)))
        return readings

    def _device(self, sample: Sample) -> ProbeDevice:
        total = sample.values.get("memory_total_bytes")
        return ProbeDevice(
            key=sample.uuid or sample.pci_bus_id or f"{self.name}-{sample.index}",
            name=sample.name,
            vendor=self.vendor,
            uuid=sample.uuid,
            pci_bus_id=sample.pci_bus_id,
            memory_bytes=None if total is None else int(total),
            compute_units=sample.compute_units,
            power_limit_w=sample.values.get("power_limit_w"),
            parent=sample.parent,
            driver=sample.driver,
        )

    def _meaning(self, name: str) -> Meaning:
        meaning = MEANINGS[name]
        scope, description = self.meanings.get(name, (meaning.scope, meaning.description))
        return replace(meaning, scope=scope, description=description)

    def _reading(self, name: str, value: float | None, reason: Reason) -> Reading:
        meaning = self._meaning(name)
        return Reading(name, value, meaning.unit, meaning.scope, meaning.kind, reason)
