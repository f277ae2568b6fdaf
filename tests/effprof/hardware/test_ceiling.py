"""Measured ceilings: plausible, cached, bounded in time, and without a trace in the training they run beside."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from effprof.errors import EffprofError
from effprof.hardware import ceiling
from effprof.hardware.ceiling import measure_copy, measure_gemm


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(ceiling, "_cache", {})
    monkeypatch.setenv("EFFPROF_CEILINGS", "off")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_gemm_reports_what_it_measured() -> None:
    found = measure_gemm("cpu", "fp32", budget_s=0.4)
    assert found.flops_per_s is not None
    assert found.bytes_per_s is None
    m, n, k = found.shape
    # the machine was asked for the same product by hand: the ceiling is not below half of that
    a, b = torch.randn(m, k), torch.randn(n, k)
    torch.mm(a, b.t())
    begin = time.perf_counter()
    torch.mm(a, b.t())
    by_hand = 2 * m * n * k / (time.perf_counter() - begin)
    assert found.flops_per_s > by_hand / 2
    assert (found.dtype, found.threads, found.repeats) == ("fp32", 1, 5)


def test_results_are_kept_per_dtype_and_threads() -> None:
    first = measure_gemm("cpu", "fp32", budget_s=0.2)
    assert measure_gemm("cpu", "fp32", budget_s=0.2) is first
    torch.set_num_threads(2)
    second = measure_gemm("cpu", "fp32", budget_s=0.2)
    assert second is not first
    assert second.threads == 2


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_dtype_without_hardware_is_measured_as_slow_as_it_is_within_the_budget(dtype: str) -> None:
    begin = time.perf_counter()
    found = measure_gemm("cpu", dtype, budget_s=0.5)
    assert found.flops_per_s is not None
    assert found.flops_per_s > 1e8
    assert time.perf_counter() - begin < 5  # the last shape may run over by one block on a busy machine


def test_a_dtype_that_cannot_be_multiplied_is_an_error_not_a_number() -> None:
    with pytest.raises(EffprofError, match="fp9"):
        measure_gemm("cpu", "fp9", budget_s=0.1)


def test_measuring_leaves_random_state_gradients_and_autocast_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measure_gemm("cpu", "fp32", budget_s=0.1)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert torch.get_float32_matmul_precision() == "highest"


def test_either_way_of_allowing_tf32_is_understood_and_put_back() -> None:
    # in processes of their own: once the newer setting was used, torch refuses the older question for good
    script = """
import torch
from effprof.hardware import ceiling
{allow}
assert ceiling.fp32_products_run_in("cuda") == "tf32"
assert ceiling.fp32_products_run_in("cpu") == "fp32"
with ceiling._tf32(torch.device("cuda"), False):
    assert ceiling.fp32_products_run_in("cuda") == "fp32"
assert ceiling.fp32_products_run_in("cuda") == "tf32"
"""
    for allow in ("torch.set_float32_matmul_precision('high')", "torch.backends.cuda.matmul.fp32_precision = 'tf32'"):
        subprocess.run([sys.executable, "-c", script.format(allow=allow)], check=True, timeout=120)


def test_copy_counts_read_and_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "_CPU_COPY_BYTES", 64 << 20)
    found = measure_copy("cpu", repeats=3)
    assert found.flops_per_s is None
    assert found.bytes_per_s is not None
    assert 5e8 < found.bytes_per_s < 2e12
    assert found.shape == ((64 << 20) // 4,)
