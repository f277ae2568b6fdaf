"""What this very device reaches: the best matrix product and the best copy of a short search, measured here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from effprof.errors import EffprofError
from effprof.hardware import ceiling_cache
from effprof.hardware.identity import DeviceIdentity, identify

if TYPE_CHECKING:
    import torch

# Sizes grow until the time is used up, so a slow path (bf16 without hardware for it) stops at a small one.
GEMM_SHAPES = (
    (256, 256, 256),
    (512, 128, 512),
    (512, 512, 512),
    (2048, 256, 256),
    (1024, 1024, 1024),
    (2048, 1024, 4096),
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (16384, 8192, 8192),
)
GEMM_DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8", "fp64")
# Seconds a search may take. Long enough for the clocks of a GPU to settle, short enough for a training's first step.
CPU_BUDGET_S, DEVICE_BUDGET_S = 1.6, 3.0
# What the dtype beside a training's own may cost its first step, where it is not known yet.
ALTERNATIVE_BUDGET_S = 0.8
ALTERNATIVES = ("fp32", "bf16")
# A machine of which others used more than this share while a search ran was not quiet.
_QUIET_SHARE = 0.1
# Timings of one shape that differ by more than this were disturbed, by other processes most likely: measure on.
_QUIET_SPREAD = 0.15
_CPU_COPY_BYTES, _DEVICE_COPY_BYTES = 256 << 20, 1 << 30
# On a device a timed block holds as many products as fill this, so that launch and synchronisation weigh under a
# percent. On a CPU every product is timed alone, and for at least this long: with threads that wait for each other
# the mean of several would carry every interruption by another process.
_CPU_TIMED_S, _DEVICE_BLOCK_S = 0.01, 0.02

_cache: dict[tuple[str, str, int], Ceiling] = {}


@dataclass(frozen=True)
class Ceiling:
    """The best rate found, with what it was found on. One of `flops_per_s` and `bytes_per_s` is set.

    A copy's bytes count both the read and the write. At least `repeats` timings per shape, the fastest one counts.

    Attributes:
        seconds: what measuring took; 0 for one that was kept from earlier.
        measured_s: Unix time of the measurement.
        is_cached: whether it was kept from earlier on this machine.
        is_provisional: measured beside other work, or in less time than a search takes.
    """

    device: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    threads: int
    repeats: int
    seconds: float
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    measured_s: float = 0.0
    is_cached: bool = False
    is_provisional: bool = False


def measure_gemm(
    device: str, dtype: str, *, repeats: int = 5, budget_s: float | None = None, refresh: bool = False
) -> Ceiling:
    """The best dense matrix product of a short search, best of `repeats`; kept per device, dtype, threads and torch.

    Measured once on a machine (see `effprof.hardware.ceiling_cache`), and again for as long as it was never quiet.
    Touches no random state and no tensor of the caller's, so a training goes on bit-identically.

    Args:
        device: torch's name, "cpu" or "cuda:0".
        dtype: "fp32", "tf32", "bf16", "fp16", "fp64" or "fp8".
        repeats: timings per shape, at least.
        budget_s: seconds the search may take; 1.6 on a CPU, 3 elsewhere.
        refresh: measure although one is kept.

    Raises:
        EffprofError: the device cannot multiply this dtype.
    """
    import torch

    threads = torch.get_num_threads()
    key = (device, dtype, threads if torch.device(device).type == "cpu" else 0)
    if refresh or key not in _cache or _cache[key].repeats < repeats:
        _cache[key] = _kept_or_measured(torch.device(device), dtype, key[2], repeats, budget_s, refresh)
    return _cache[key]


def known_ceilings(device: DeviceIdentity) -> dict[str, float]:
    """dtype → FLOP/s of the best matrix product known of a device; a CPU's missing alternatives are measured, briefly.

    So that what another precision would bring can be told from the ratio.
    """
    import torch

    threads = torch.get_num_threads() if device.type == "cpu" else 0
    found = {each.dtype: each.flops_per_s for each in ceiling_cache.load(device) if each.threads == threads}
    measured = {key[1]: each for key, each in _cache.items() if key[0] == device.type and key[2] == threads}
    found |= {dtype: each.flops_per_s for dtype, each in measured.items() if each.flops_per_s}
    for dtype in ALTERNATIVES if device.type == "cpu" else ():
        if dtype not in found:
            with contextlib.suppress(EffprofError):
                found[dtype] = measure_gemm("cpu", dtype, budget_s=ALTERNATIVE_BUDGET_S).flops_per_s or 0.0
    return found


def _kept_or_measured(
    device: torch.device, dtype: str, threads: int, repeats: int, budget_s: float | None, refresh: bool
) -> Ceiling:
    identity = identify(device.type, device.index or 0)
    kept = ceiling_cache.find(identity, dtype, threads)
    if kept is not None and not kept.is_provisional and not refresh and kept.repeats >= repeats:
        return _from_kept(kept, device)
    measured = _search_gemm(device, dtype, repeats, budget_s)
    assert measured.flops_per_s is not None
    entry = ceiling_cache.new_entry(
        identity,
        dtype,
        threads,
        flops_per_s=measured.flops_per_s,
        shape=measured.shape,
        layout=measured.layout,
        repeats=repeats,
        measured_s=measured.measured_s,
        is_provisional=measured.is_provisional,
    )
    replaces = refresh and not measured.is_provisional
    best = ceiling_cache.better(entry, None if replaces else kept)
    ceiling_cache.keep(best)
    return measured if best is entry else _from_kept(best, device)


def _from_kept(kept: ceiling_cache.KeptCeiling, device: torch.device) -> Ceiling:
    return Ceiling(
        device=str(device),
        dtype=kept.dtype,
        shape=kept.shape,
        layout=kept.layout,
        threads=kept.threads,
        repeats=kept.repeats,
        seconds=0.0,
        flops_per_s=kept.flops_per_s,
        measured_s=kept.measured_s,
        is_cached=True,
        is_provisional=kept.is_provisional,
    )


def measure_copy(device: str, *, repeats: int = 5) -> Ceiling:
    """Measure the memory rate of a large copy inside the device, best of `repeats`; read and write both count."""
    import torch

    target = torch.device(device)
    begin = time.perf_counter()
    size = _CPU_COPY_BYTES if target.type == "cpu" else _DEVICE_COPY_BYTES
    with _quiet(target):
        try:
            source = torch.zeros(size // 4, dtype=torch.float32, device=target)
            copy = torch.empty_like(source)
        except RuntimeError as error:
            raise EffprofError(f"no room for two buffers of {size >> 20} MiB on {device}", str(error)) from error
        best, _ = _best_seconds(target, lambda: copy.copy_(source), _synchronizer(target), repeats)
    return Ceiling(
        device=device,
        dtype="fp32",
        shape=(source.numel(),),
        layout="contiguous",
        threads=torch.get_num_threads(),
        repeats=repeats,
        seconds=time.perf_counter() - begin,
        bytes_per_s=2 * source.numel() * source.element_size() / best,
    )


def _search_gemm(device: torch.device, dtype: str, repeats: int, budget_s: float | None) -> Ceiling:
    import torch

    begin = time.perf_counter()
    usual_s = CPU_BUDGET_S if device.type == "cpu" else DEVICE_BUDGET_S
    deadline = begin + (budget_s or usual_s)
    found = _Best()
    others = _OtherWork()
    with _quiet(device), _tf32(device, dtype == "tf32"):
        # a disturbed search goes over the shapes again for as long as there is time: a rate that was too low once
        # would show a later, undisturbed training above its ceiling
        while not found.rate or (found.disturbed and time.perf_counter() < deadline):
            found.disturbed = False
            _search_once(device, dtype, repeats, deadline, found)
            if not found.rate:
                raise EffprofError(f"{device} cannot multiply {dtype} matrices here", found.failure)
    return Ceiling(
        device=str(device),
        dtype=dtype,
        shape=found.shape,
        layout=found.layout,
        threads=torch.get_num_threads(),
        repeats=repeats,
        seconds=time.perf_counter() - begin,
        flops_per_s=found.rate,
        measured_s=time.time(),
        is_provisional=found.disturbed or (budget_s or usual_s) < usual_s or others.share() > _QUIET_SHARE,
    )


class _OtherWork:
    """How much of the machine's processors is used by other processes, from its construction on."""

    def __init__(self) -> None:
        self._before = self._read()

    def share(self) -> float:
        """0 … 1, of all processors' time."""
        total, idle, own = (after - before for after, before in zip(self._read(), self._before, strict=True))
        return max(0.0, (total - idle - own) / total) if total > 0 else 0.0

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        own = psutil.Process().cpu_times()
        # a guest's time is in user and nice already
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total, times.idle + getattr(times, "iowait", 0.0), own.user + own.system


@dataclass
class _Best:
    """The best product so far."""

    rate: float = 0.0
    shape: tuple[int, int, int] = (0, 0, 0)
    layout: str = ""
    failure: str = ""
    disturbed: bool = False


def _search_once(device: torch.device, dtype: str, repeats: int, deadline: float, found: _Best) -> None:
    """Measure every shape and layout that fits into the time left."""
    synchronize = _synchronizer(device)
    for shape in GEMM_SHAPES:
        flops = 2.0 * shape[0] * shape[1] * shape[2]
        for layout in ("nt", "nn"):
            # a product runs once to warm up, then once per repeat
            if found.rate and flops / found.rate * (repeats + 1) > deadline - time.perf_counter():
                continue
            try:
                call = _product(device, dtype, shape, layout)
                seconds, spread = _best_seconds(device, call, synchronize, repeats, deadline)
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                found.failure = str(error).splitlines()[0] if str(error) else type(error).__name__
                continue
            found.disturbed |= spread > _QUIET_SPREAD
            if flops / seconds > found.rate:
                found.rate, found.shape, found.layout = flops / seconds, shape, layout


def _product(device: torch.device, dtype: str, shape: tuple[int, int, int], layout: str) -> Callable[[], Any]:
    """A call that multiplies fixed matrices; "nt" is how a linear layer multiplies by its weight."""
    import torch

    types = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    types |= {"fp64": torch.float64, "fp8": torch.float8_e4m3fn}
    if dtype not in types:
        raise EffprofError(f"no measurement for dtype {dtype!r}", f"choose from {', '.join(GEMM_DTYPES)}")
    m, n, k = shape
    # constant matrices draw less power than real ones and would let a GPU clock higher; a generator of its own
    # leaves the random state of the training alone
    generator = torch.Generator(device=device).manual_seed(0)
    plain = torch.float32 if dtype == "fp8" else types[dtype]
    a = torch.randn(m, k, device=device, dtype=plain, generator=generator)
    b = torch.randn(n, k, device=device, dtype=plain, generator=generator)
    if dtype == "fp8":
        if layout != "nt":
            raise ValueError("fp8 products take the second matrix transposed")
        scale = torch.ones((), device=device)
        a8, b8 = a.to(types["fp8"]), b.to(types["fp8"])
        return lambda: torch._scaled_mm(a8, b8.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)
    right = b.t() if layout == "nt" else b.t().contiguous()
    out = torch.empty(m, n, device=device, dtype=plain)
    return lambda: torch.mm(a, right, out=out)


def _best_seconds(
    device: torch.device,
    call: Callable[[], Any],
    synchronize: Callable[[], None],
    repeats: int,
    deadline: float = float("inf"),
) -> tuple[float, float]:
    """Seconds of one call and the spread of its timings, (median - fastest) / fastest.

    The fastest of at least `repeats` timings after a warm-up counts; past the deadline there are fewer, but one.
    """
    begin = time.perf_counter()
    call()
    synchronize()
    once = time.perf_counter() - begin
    on_cpu = device.type == "cpu"
    count = 1 if on_cpu else max(1, min(200, int(_DEVICE_BLOCK_S / max(once, 1e-6))))
    until = time.perf_counter() + (_CPU_TIMED_S if on_cpu else 0.0)
    timings: list[float] = []
    while len(timings) < repeats or time.perf_counter() < until:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        synchronize()
        end = time.perf_counter()
        timings.append((end - begin) / count)
        if end > deadline:
            break
    timings.sort()
    return timings[0], timings[len(timings) // 2] / timings[0] - 1


def _synchronizer(device: torch.device) -> Callable[[], None]:
    import torch

    if device.type == "cpu":
        return lambda: None
    module = torch.get_device_module(device)
    if hasattr(module, "device_count") and device.index is not None and module.device_count() > 1:
        return lambda: module.synchronize(device)
    return lambda: module.synchronize()


@contextlib.contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    """No gradients and no autocast of a training that this is called from."""
    import torch

    plain: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    with contextlib.suppress(RuntimeError):  # a backend that has no autocast need not switch it off
        plain = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(), plain:
        yield


@contextlib.contextmanager
def _tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Whether fp32 products may use tf32 during the measurement; what was set before comes back."""
    import torch

    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    # since torch 2.9 there is a setting per backend, and asking by the old name fails once the new one was used
    name, on, off = (
        ("fp32_precision", "tf32", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True, False)
    )
    before = getattr(matmul, name)
    setattr(matmul, name, on if allowed else off)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def fp32_products_run_in(device_type: str) -> str:
    """ "tf32" where this process lets fp32 matrix products on `device_type` use it, else "fp32"."""
    import torch

    if device_type != "cuda":
        return "fp32"
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return "tf32" if matmul.fp32_precision == "tf32" else "fp32"
    return "tf32" if matmul.allow_tf32 else "fp32"
