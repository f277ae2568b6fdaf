"""Keeps measured ceilings per machine, so that a busy moment does not lower one and a quiet one need not be repeated.

One file, `ceilings.json` under `$XDG_CACHE_HOME/effprof` (`~/.cache/effprof`); `EFFPROF_CEILINGS=off` neither reads nor
writes it, another value is the file's path. No torch is needed to read it.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from importlib import metadata
from pathlib import Path

import msgspec

from effprof.hardware.identity import DeviceIdentity

SCHEMA = "effprof.ceilings/1"
VARIABLE = "EFFPROF_CEILINGS"
FILE = "ceilings.json"


class KeptCeiling(msgspec.Struct, frozen=True, kw_only=True):
    """The best matrix product found on a device, by dtype, threads and torch version.

    Attributes:
        device: as `device_key` names it.
        threads: of torch on a CPU; 0 elsewhere.
        is_provisional: measured beside other work, or in less time than a search takes: to be measured again.
    """

    device: str
    dtype: str
    threads: int
    torch: str
    flops_per_s: float
    shape: tuple[int, ...]
    layout: str
    repeats: int
    measured_s: float  # Unix time
    is_provisional: bool = False


class _File(msgspec.Struct, kw_only=True):
    schema: str = SCHEMA
    ceilings: list[KeptCeiling] = []


def cache_path() -> Path | None:
    """Where ceilings are kept; None where the user opted out."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() in ("off", "0", "no"):
        return None
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "effprof" / FILE


def device_key(device: DeviceIdentity) -> str:
    """What tells one kind of device from another: virtual machines call very different processors by one name."""
    if device.type != "cpu":
        parts = [device.name, f"{device.compute_units or 0} units"]
        return ", ".join(parts + ([f"{device.power_limit_w:g} W"] if device.power_limit_w else []))
    return f"{device.name}, {_cpu_version()}{device.compute_units or 0} cores"


def load(device: DeviceIdentity) -> list[KeptCeiling]:
    """What is kept of a device under this version of torch; a file that can't be read holds nothing."""
    key, version = device_key(device), _torch_version()
    return [each for each in _read() if each.device == key and each.torch == version]


def find(device: DeviceIdentity, dtype: str, threads: int) -> KeptCeiling | None:
    """The one kept for a dtype and a number of threads."""
    return next((each for each in load(device) if (each.dtype, each.threads) == (dtype, threads)), None)


def new_entry(
    device: DeviceIdentity,
    dtype: str,
    threads: int,
    *,
    flops_per_s: float,
    shape: tuple[int, ...],
    layout: str,
    repeats: int,
    measured_s: float,
    is_provisional: bool,
) -> KeptCeiling:
    """A measurement of this device under the installed torch."""
    return KeptCeiling(
        device=device_key(device),
        dtype=dtype,
        threads=threads,
        torch=_torch_version(),
        flops_per_s=flops_per_s,
        shape=shape,
        layout=layout,
        repeats=repeats,
        measured_s=measured_s,
        is_provisional=is_provisional,
    )


def better(new: KeptCeiling, old: KeptCeiling | None) -> KeptCeiling:
    """Which of two measurements of the same product stands.

    Nothing makes a device faster than it is: of two the higher counts. Only a quiet measurement that is asked for again
    replaces a higher one (`old` None): the machine may have been throttled for good, or moved.
    """
    if old is None or new.flops_per_s > old.flops_per_s:
        return new
    return msgspec.structs.replace(old, is_provisional=old.is_provisional and new.is_provisional)


def keep(entry: KeptCeiling) -> None:
    """Write an entry over the one of the same device, dtype, threads and torch; a directory that can't be written is
    passed over."""
    path = cache_path()
    if path is None:
        return
    others = [each for each in _read() if _identity(each) != _identity(entry)]
    data = msgspec.json.format(msgspec.json.encode(_File(ceilings=[*others, entry])), indent=1)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)
        os.replace(temporary, path)


def _identity(entry: KeptCeiling) -> tuple[str, str, int, str]:
    return entry.device, entry.dtype, entry.threads, entry.torch


def _read() -> list[KeptCeiling]:
    path = cache_path()
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).ceilings if path else []
    except (OSError, msgspec.DecodeError):
        return []


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _cpu_version() -> str:
    """Family, model and stepping as Linux names them on x86-64; empty elsewhere, where the name says enough."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    first = text.split("\n\n", 1)[0]
    found = [re.search(rf"^{name}\s*:\s*(\d+)$", first, re.MULTILINE) for name in ("cpu family", "model", "stepping")]
    numbers = [match[1] for match in found if match]
    return f"{'/'.join(numbers)}, " if numbers else ""
