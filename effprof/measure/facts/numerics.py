"""Facts of the precision that matrix products run in, and of what the device multiplies fast."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effprof.measure.facts.read import dtype_name, read_facts, shares

if TYPE_CHECKING:
    import torch

# Instruction sets that multiply in low precision, as /proc/cpuinfo names them on x86-64 and on 64-bit Arm.
_CPU_FLAGS = (
    "amx_bf16",
    "amx_int8",
    "amx_fp16",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "bf16",
    "i8mm",
    "sve",
)
# Compute capability from which on a matrix unit takes the dtype: CUDA C++ Programming Guide, "Compute Capabilities",
# table of tensor-core input types.
_CUDA_UNITS = (((7, 0), "fp16"), ((8, 0), "bf16"), ((8, 0), "tf32"), ((8, 9), "fp8"), ((10, 0), "fp4"))
# AMD's "Accelerator and GPU hardware specifications": MFMA of fp16 from gfx908, of fp8 from gfx942, of fp4 from gfx950.
_ROCM_UNITS = (("gfx908", "fp16"), ("gfx90a", "bf16"), ("gfx942", "fp8"), ("gfx950", "fp4"))


def numerics_facts(module: torch.nn.Module | None, device_type: str, device_index: int = 0) -> dict[str, Any]:
    """Settings of torch and of the device, and the parameters' dtypes; nothing is computed on the device."""
    facts = read_facts(_GLOBAL_READERS, device_type)
    facts |= read_facts({"low_precision_units": lambda place: low_precision_units(*place)}, (device_type, device_index))
    return facts | (read_facts({"parameter_dtypes": _parameter_dtypes}, module) if module is not None else {})


def autocast_dtype(context: Callable[[], AbstractContextManager[Any]] | None, device_type: str) -> str:
    """Dtype of matrix products under `context`, `none` without autocast; the context is entered and left."""
    import torch

    with context() if context is not None else nullcontext():
        if not torch.is_autocast_enabled(device_type):
            return "none"
        return dtype_name(torch.get_autocast_dtype(device_type))


def low_precision_units(device_type: str, index: int = 0) -> list[str] | None:
    """What multiplies in low precision on the device: a CPU's instruction sets, an accelerator's dtypes."""
    import torch

    if device_type == "cpu":
        return cpu_units(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    if device_type != "cuda":
        return None
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
        return [unit for first, unit in _ROCM_UNITS if _gfx(name) >= _gfx(first)]
    capability = torch.cuda.get_device_capability(index)
    return [unit for first, unit in _CUDA_UNITS if capability >= first]


def cpu_units(cpuinfo: str) -> list[str]:
    """Low-precision instruction sets among the flags of the first processor in the text of /proc/cpuinfo."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return [flag for flag in _CPU_FLAGS if flag in flags]


def _gfx(name: str) -> int:
    return int(name.removeprefix("gfx"), 16)


def _parameter_dtypes(module: torch.nn.Module) -> dict[str, float] | None:
    amounts: dict[str, int] = {}
    for parameter in module.parameters():
        name = dtype_name(parameter.dtype)
        amounts[name] = amounts.get(name, 0) + parameter.numel()
    return shares(amounts)


def _matmul_precision(_: str) -> str:
    import torch

    return torch.get_float32_matmul_precision()


def _allow_tf32(device_type: str) -> bool | None:
    from effprof.hardware.ceiling import fp32_products_run_in

    return fp32_products_run_in(device_type) == "tf32" if device_type == "cuda" else None


def _cudnn(name: str) -> Callable[[str], bool | None]:
    def read(device_type: str) -> bool | None:
        import torch

        return bool(getattr(torch.backends.cudnn, name)) if device_type == "cuda" else None

    return read


def _sdpa_backends(_: str) -> list[str]:
    import torch

    asked = {"flash": "flash", "efficient": "mem_efficient", "cudnn": "cudnn", "math": "math"}
    cuda = torch.backends.cuda
    return [name for name, word in asked.items() if getattr(cuda, f"{word}_sdp_enabled", lambda: False)()]


def _fp32_products(device_type: str) -> str:
    from effprof.hardware.ceiling import fp32_products_run_in

    return fp32_products_run_in(device_type)


def _threads(_: str) -> int:
    import torch

    return torch.get_num_threads()


def _deterministic(_: str) -> bool:
    import torch

    return torch.are_deterministic_algorithms_enabled()


_GLOBAL_READERS: dict[str, Callable[[str], Any]] = {
    "matmul_precision": _matmul_precision,
    "allow_tf32": _allow_tf32,
    "cudnn_allow_tf32": _cudnn("allow_tf32"),
    "cudnn_benchmark": _cudnn("benchmark"),
    "fp32_products_run_in": _fp32_products,
    "sdpa_backends": _sdpa_backends,
    "threads": _threads,
    "deterministic": _deterministic,
}
