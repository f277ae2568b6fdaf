"""What this very device reaches: the best matrix product and the best copy of a short search, measured here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effprof.errors import EffprofError

if TYPE_CHECKING:
    import torch

# Sizes grow until the time is used up, so a slow path (bf16 without hardware for it) stops at a small one.
GEMM_SHAPES = (
    (256, 256, 256),
    (512, 512, 512),
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
_CPU_COPY_BYTES, _DEVICE_COPY_BYTES = 256 << 20, 1 << 30
# One timed block holds as many products as fill this, so that timer and synchronisation weigh under a percent.
_CPU_BLOCK_S, _DEVICE_BLOCK_S = 0.004, 0.02

_cache: dict[tuple[str, str, int], Ceiling] = {}


@dataclass(frozen=True)
class Ceiling:
    """The best rate found, with what it was found on. One of `flops_per_s` and `bytes_per_s` is set.

    A copy's bytes count both the read and the write. `repeats` timed blocks per shape, the fastest one counts.
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


def measure_gemm(device: str, dtype: str, *, repeats: int = 5, budget_s: float | None = None) -> Ceiling:
    """Measure the best dense matrix product of a short search, best of `repeats`; cached per device, dtype, threads.

    Touches no random state and no tensor of the caller's, so a training goes on bit-identically.

    Args:
        device: torch's name, "cpu" or "cuda:0".
        dtype: "fp32", "tf32", "bf16", "fp16", "fp64" or "fp8".
        repeats: timed blocks per shape.
        budget_s: seconds the search may take; 1.6 on a CPU, 3 elsewhere.

    Raises:
        EffprofError: the device cannot multiply this dtype.
    """
    import torch

    threads = torch.get_num_threads()
    key = (device, dtype, threads if torch.device(device).type == "cpu" else 0)
    if key not in _cache or _cache[key].repeats < repeats:
        _cache[key] = _search_gemm(torch.device(device), dtype, repeats, budget_s)
    return _cache[key]


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
        best = _best_seconds(lambda: copy.copy_(source), _synchronizer(target), repeats, _block_s(target))
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
    budget = budget_s or (CPU_BUDGET_S if device.type == "cpu" else DEVICE_BUDGET_S)
    deadline = begin + budget
    best: Ceiling | None = None
    failure = ""
    with _quiet(device), _tf32(device, dtype == "tf32"):
        synchronize = _synchronizer(device)
        for shape in GEMM_SHAPES:
            m, n, k = shape
            flops = 2.0 * m * n * k
            for layout in ("nt", "nn"):
                left = deadline - time.perf_counter()
                # a product runs once to warm up, then once per repeat
                if best and best.flops_per_s and flops / best.flops_per_s * (repeats + 1) > left:
                    continue
                try:
                    call = _product(device, dtype, shape, layout)
                    seconds = _best_seconds(call, synchronize, repeats, _block_s(device), deadline)
                except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                    failure = str(error).splitlines()[0] if str(error) else type(error).__name__
                    continue
                if best is None or flops / seconds > (best.flops_per_s or 0.0):
                    threads = torch.get_num_threads()
                    best = Ceiling(str(device), dtype, shape, layout, threads, repeats, 0.0, flops / seconds)
    if best is None:
        raise EffprofError(f"{device} cannot multiply {dtype} matrices here", failure)
    return Ceiling(**{**vars(best), "seconds": time.perf_counter() - begin})


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
    call: Callable[[], Any],
    synchronize: Callable[[], None],
    repeats: int,
    block_s: float,
    deadline: float = float("inf"),
) -> float:
    """Seconds of one call: the fastest of `repeats` blocks after a warm-up, fewer (but one) past the deadline."""
    begin = time.perf_counter()
    call()
    synchronize()
    once = time.perf_counter() - begin
    count = max(1, min(200, int(block_s / max(once, 1e-6))))
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        synchronize()
        best = min(best, (time.perf_counter() - begin) / count)
        if time.perf_counter() > deadline:
            break
    return best


def _block_s(device: torch.device) -> float:
    return _CPU_BLOCK_S if device.type == "cpu" else _DEVICE_BLOCK_S


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
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
