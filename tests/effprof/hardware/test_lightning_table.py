"""Every case in which Lightning's own table of peaks is wrong or silent, against the datasheet and the catalogue."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning_fabric.utilities import throughput

from effprof.hardware.catalog import UnknownAccelerator, lookup

pytestmark = pytest.mark.filterwarnings("ignore:.*FLOPs not found")

BF16, FP16 = torch.bfloat16, torch.float16
KEYS = {BF16: "bf16", FP16: "fp16"}

# Runtime name, dtype, dense TFLOP/s of the datasheet (or of the board's clock and unit count), what Lightning says.
WRONG = [
    ("NVIDIA H100 NVL", BF16, 835.5, 1978.8),  # the pair of cards, as launched
    ("NVIDIA L40", BF16, 181.05, 121.0),  # any "l4" is an L4
    ("NVIDIA L40S", BF16, 362.05, 121.0),
    ("NVIDIA RTX A6000", BF16, 154.8, 38.7),  # vector rate in the tensor row
    ("NVIDIA A40", BF16, 149.7, 37.4),
    ("NVIDIA GeForce RTX 3070", BF16, 40.6, 20.3),
    ("NVIDIA GeForce RTX 3080", BF16, 59.5, 29.8),
    ("NVIDIA GeForce RTX 3080 Ti", BF16, 68.2, 34.1),
    ("NVIDIA GeForce RTX 3090", BF16, 71.0, 35.6),
    ("NVIDIA GeForce RTX 3090 Ti", BF16, 80.0, 40.0),
    ("NVIDIA GeForce RTX 4080", BF16, 97.5, 48.7),
    ("NVIDIA GeForce RTX 4080 SUPER", BF16, 104.4, 52.2),
    ("NVIDIA GeForce RTX 4090", BF16, 165.2, 82.6),
    ("NVIDIA A10G", BF16, 70.0, 125.0),  # the A10's rate
    ("NVIDIA GeForce RTX 2070 SUPER", FP16, 36.2, 18.1),
    ("NVIDIA GeForce RTX 2080", FP16, 40.3, 21.2),
    ("NVIDIA GeForce RTX 2080 SUPER", FP16, 44.6, 22.3),
    ("NVIDIA GeForce RTX 2080 Ti", FP16, 53.8, 28.5),
    ("NVIDIA TITAN RTX", FP16, 130.5, 32.6),
    # named in the table under keys that no runtime reports, or not at all
    ("NVIDIA H200", BF16, 989.4, None),
    ("NVIDIA H200 NVL", BF16, 835.5, None),
    ("NVIDIA GH200 480GB", BF16, 989.4, None),
    ("NVIDIA GH200 144G HBM3e", BF16, 989.4, None),
    ("NVIDIA B200", BF16, 2250.0, None),
    ("NVIDIA B300 SXM6 AC", BF16, 2250.0, None),
    ("NVIDIA GB200", BF16, 2500.0, None),
    ("NVIDIA GB300", BF16, 2500.0, None),
    ("NVIDIA H20", BF16, 148.0, None),
    ("NVIDIA H800", BF16, 989.4, None),
    ("NVIDIA A800-SXM4-80GB", BF16, 312.0, None),
    ("NVIDIA A10", BF16, 125.0, None),
    ("NVIDIA A30", BF16, 165.0, None),
    ("NVIDIA L20", BF16, 119.5, None),
    ("NVIDIA RTX 6000 Ada Generation", BF16, 364.2, None),
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", BF16, 503.8, None),
    ("NVIDIA GeForce RTX 4070 Ti SUPER", BF16, 88.2, None),
    ("NVIDIA GeForce RTX 5090", BF16, 209.5, None),
    ("NVIDIA GB10", BF16, 125.0, None),
    ("AMD Instinct MI210", BF16, 181.0, None),
    ("AMD Instinct MI250X", BF16, 191.5, None),
    ("AMD Instinct MI300X", BF16, 1307.4, None),
    ("AMD Instinct MI325X", BF16, 1307.4, None),
    ("AMD Instinct MI355X", BF16, 2516.6, None),
]
# Where Lightning is right both must agree: the table is not merely different.
RIGHT = [
    ("NVIDIA H100 80GB HBM3", BF16, 989.4),
    ("NVIDIA H100 PCIe", BF16, 756.0),
    ("NVIDIA A100-SXM4-80GB", BF16, 312.0),
    ("NVIDIA A100-PCIE-40GB", BF16, 312.0),
    ("NVIDIA L4", BF16, 121.0),
    ("Tesla T4", FP16, 65.0),
    ("Tesla V100-SXM2-16GB", FP16, 125.0),
    ("Tesla V100-PCIE-16GB", FP16, 112.0),
]


@pytest.fixture
def ask_lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lightning's answer in TFLOP/s for the card whose name CUDA would report; None where it has no answer."""

    def ask(name: str, dtype: torch.dtype) -> float | None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        flops = throughput.get_available_flops(torch.device("cuda", 0), dtype)
        return None if flops is None else flops / 1e12

    return ask


@pytest.mark.parametrize(("name", "dtype", "datasheet", "lightning"), WRONG)
def test_catalogue_is_right_where_lightning_is_not(
    ask_lightning: Any, name: str, dtype: torch.dtype, datasheet: float, lightning: float | None
) -> None:
    assert lookup(name).peak_tflops[KEYS[dtype]] == pytest.approx(datasheet, rel=2e-3)
    theirs = ask_lightning(name, dtype)
    assert theirs == (None if lightning is None else pytest.approx(lightning))
    assert theirs is None or theirs != pytest.approx(datasheet, rel=0.1)


@pytest.mark.parametrize(("name", "dtype", "datasheet"), RIGHT)
def test_both_agree_where_lightning_is_right(
    ask_lightning: Any, name: str, dtype: torch.dtype, datasheet: float
) -> None:
    assert lookup(name).peak_tflops[KEYS[dtype]] == datasheet
    assert ask_lightning(name, dtype) == pytest.approx(datasheet)


def test_a_laptop_part_is_refused_where_lightning_takes_the_desktop_card(ask_lightning: Any) -> None:
    name = "NVIDIA GeForce RTX 4090 Laptop GPU"
    assert ask_lightning(name, BF16) == pytest.approx(82.6)
    with pytest.raises(UnknownAccelerator, match="laptop"):
        lookup(name)


def test_a_slice_has_its_share_where_lightning_takes_the_whole_chip(ask_lightning: Any) -> None:
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert ask_lightning(name, BF16) == pytest.approx(989.4)
    assert lookup(name).peak_tflops["bf16"] == pytest.approx(989.4 * 16 / 132)


def test_lightnings_h200_rows_are_sparse_and_unreachable() -> None:
    for key, runtime_name in (("h200 sxm1", "NVIDIA H200"), ("h200 nvl1", "NVIDIA H200 NVL")):
        sparse = throughput._CUDA_FLOPS[key][BF16] / 1e12
        assert sparse / lookup(runtime_name).peak_tflops["bf16"] == pytest.approx(2, rel=0.03)
