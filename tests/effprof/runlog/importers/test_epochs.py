"""Loops that count anew in every epoch, and records that are wrapped: lines written after what the tools print."""

from __future__ import annotations

from pathlib import Path

import pytest

from effprof.analysis.foreign import examine_foreign
from effprof.runlog.importers.sniff import read_foreign

SWIN = (
    "[2024-05-01 10:00:{s:02d} swin] (main.py 254): INFO Train: [{e}/300][{i}/40]\teta 0:10:00 lr 0.001\t wd 0.05"
    "\t time 0.3500 (0.4100)\tdata time 0.0200 (0.0300)\tmodel time 0.3100 (0.3200)\tloss 6.9000 (6.9500)\tmem 9000MB"
)
MMCV = (
    "2024-05-01 10:00:{s:02d},100 - mmdet - INFO - Epoch [{e}][{i}/40]\tlr: 1.000e-03, eta: 1:00:00, time: 0.350, "
    "data_time: 0.020, memory: 9000, loss_cls: 0.30, loss: 6.9000"
)
BAR = "Epoch {e}:  25%|██▌       | {i}/40 [00:{s:02d}<01:00,  2.00it/s, v_num=3, train_loss_step=6.900]"


def write(path: Path, template: str, epochs: int = 2, ends: str = "\n") -> str:
    lines = []
    for epoch in range(epochs):
        lines += [template.format(e=epoch, i=i, s=i // 2 + 1) for i in range(10, 40, 10)]
    path.write_text(ends.join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("template", "form", "steps"),
    [
        (SWIN, "swin", [11, 21, 31, 51, 61, 71]),
        (MMCV, "mmcv", [10, 20, 30, 50, 60, 70]),
    ],
)
def test_steps_go_on_through_epochs(template: str, form: str, steps: list[int], tmp_path: Path) -> None:
    log = read_foreign(write(tmp_path / "log.txt", template))
    assert log.format == form
    assert log.columns["step"].tolist() == steps
    assert log.columns["step_time_s"].tolist() == [0.35] * 6
    assert log.columns["input_wait_s"].tolist() == [0.02] * 6
    assert log.columns["loss"].tolist() == [6.9] * 6
    assert log.columns["memory_bytes"].tolist() == [9000 << 20] * 6
    assert "iterations" in [code for code, _ in log.notes]
    assert examine_foreign(log.path).analysis.efficiency.step_time_s.median == pytest.approx(0.35)


def test_a_bar_that_is_redrawn_has_a_clock_of_its_own(tmp_path: Path) -> None:
    log = read_foreign(write(tmp_path / "log.txt", BAR, ends="\r"))
    assert log.format == "lightning-progress"
    assert log.columns["step"].tolist() == [10, 20, 30, 50, 60, 70]
    assert log.columns["elapsed_s"].tolist() == [6, 11, 16, 22, 27, 32]
    assert log.columns["loss"].tolist() == [6.9] * 6


def test_a_record_wrapped_over_three_lines_is_one_step(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(
        "".join(
            f"[05/01/24 10:00:0{i}] INFO     colossalai - Step time: 1.{i}, Num\n"
            "                    samples: 8, Loss: 2.5,\n"
            "                    Throughput: 12345.6 tokens/s, TFLOPS: 150.5\n"
            for i in range(1, 5)
        )
    )
    log = read_foreign(str(path))
    assert log.format == "colossalai"
    assert log.columns["step_time_s"].tolist() == [1.1, 1.2, 1.3, 1.4]
    assert log.columns["tflops_per_device"].tolist() == [150.5] * 4
    source = examine_foreign(str(path)).analysis.source
    assert source is not None
    assert source.claimed.tflops_per_device == 150.5
