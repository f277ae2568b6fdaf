"""The peak under MFU: right for the dtypes given, sourced, and refused with a remedy where it is not known."""

from __future__ import annotations

import pytest
import torch

from effprof.hardware.identity import DeviceIdentity, identify
from effprof.hardware.peak import Peak, harmonic_mean, resolve_peak

H100 = DeviceIdentity("cuda", 0, "NVIDIA H100 80GB HBM3", "NVIDIA", 85_027_979_264, 132)
T4 = DeviceIdentity("cuda", 0, "Tesla T4", "NVIDIA", 15_655_829_504, 40)


def peak_of(*args: object, **named: object) -> Peak:
    peak = resolve_peak(*args, **named)  # type: ignore[arg-type]
    assert isinstance(peak, Peak), peak
    return peak


def reason_of(*args: object, **named: object) -> str:
    reason = resolve_peak(*args, **named)  # type: ignore[arg-type]
    assert isinstance(reason, str)
    return reason


def test_one_dtype_takes_the_datasheet_row() -> None:
    peak = peak_of(H100, {"bf16": 1.0})
    assert peak.flops_per_s == pytest.approx(989.4e12)
    assert (peak.dtype, peak.kind) == ("bf16", "datasheet")
    assert "H100 SXM5 80GB" in peak.source
    assert "https://" in peak.source


def test_mixed_dtypes_take_the_flop_weighted_harmonic_mean() -> None:
    peak = peak_of(H100, {"torch.bfloat16": 3.0, "fp32": 1.0})
    # 1 FLOP: 0.75 at 989.4, 0.25 at 66.9 → seconds add up
    assert peak.flops_per_s == pytest.approx(1 / (0.75 / 989.4e12 + 0.25 / 66.9e12))
    assert peak.dtype == "bf16+fp32"
    assert peak.parts == {
        "bf16": {"share": 0.75, "flops_per_s": pytest.approx(989.4e12)},
        "fp32": {"share": 0.25, "flops_per_s": pytest.approx(66.9e12)},
    }
    assert harmonic_mean(peak.parts) == peak.flops_per_s


def test_tf32_is_its_own_rate_and_plain_fp32_where_the_chip_has_none() -> None:
    assert peak_of(H100, {"tf32": 1.0}).flops_per_s == pytest.approx(494.7e12)
    assert peak_of(T4, {"tf32": 1.0}).flops_per_s == pytest.approx(8.1e12)


def test_fp64_matmuls_run_on_the_tensor_cores() -> None:
    assert peak_of(H100, {"fp64": 1.0}).flops_per_s == pytest.approx(66.9e12)
    assert peak_of(T4, {"fp64": 1.0}).flops_per_s == pytest.approx(0.25e12)


@pytest.mark.parametrize(
    ("device", "by_dtype", "says"),
    [
        (T4, {"bf16": 1.0}, "no dense bf16 rate"),
        (DeviceIdentity("cuda", 0, "Warp Core 9000", "NVIDIA"), {"bf16": 1.0}, "not in the catalogue"),
        (DeviceIdentity("cuda", 0, "NVIDIA H100", "NVIDIA"), {"bf16": 1.0}, "could be any of"),
        (DeviceIdentity("cuda", 0, "NVIDIA H100 NVL MIG 1g.12gb"), {"bf16": 1.0}, "slice"),
        (H100, {}, "not known which dtypes"),
        (H100, {"bf16": float("nan")}, "not known which dtypes"),
    ],
)
def test_no_peak_is_one_line_that_names_the_remedy(
    device: DeviceIdentity, by_dtype: dict[str, float], says: str
) -> None:
    reason = reason_of(device, by_dtype)
    assert says in reason
    assert "peak_tflops=" in reason
    assert "\n" not in reason


def test_the_users_peak_overrides_everything() -> None:
    peak = peak_of(DeviceIdentity("cuda", 0, "Warp Core 9000"), {"bf16": 1.0}, peak_tflops=123.0)
    assert (peak.flops_per_s, peak.kind, peak.dtype) == (123e12, "given", "bf16")
    assert peak_of(H100, {}, peak_tflops=5.0).flops_per_s == 5e12


@pytest.mark.parametrize("given", [0.0, -1.0, float("nan"), float("inf")])
def test_a_senseless_peak_is_refused(given: float) -> None:
    assert "peak_tflops" in reason_of(H100, {"bf16": 1.0}, peak_tflops=given)


def test_a_chip_seen_as_several_devices_shares_its_peak() -> None:
    tpu = DeviceIdentity("xla", 0, "TPU v3")
    peak = peak_of(tpu, {"bf16": 1.0})
    assert peak.flops_per_s == pytest.approx(123e12 / 2)
    assert "one of 2 devices" in peak.source


def test_a_processors_peak_is_measured_here() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        peak = peak_of(identify("cpu"), {"fp32": 0.5, "tf32": 0.5})
    finally:
        torch.set_num_threads(threads)
    assert peak.kind == "measured_ceiling"
    assert "best of 5 GEMMs, 1 threads" in peak.source
    assert peak.parts["fp32"]["flops_per_s"] == peak.parts["tf32"]["flops_per_s"]  # no tf32 on a processor
    assert 1e9 < peak.flops_per_s < 1e12  # one core
