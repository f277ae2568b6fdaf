"""NeMo 2's keys in any order, NeMo 1's bar, Megatron-Bridge's and Automodel's lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from effprof.analysis.foreign import examine_foreign
from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.sniff import read_foreign


def read(tmp_path: Path, text: str) -> ForeignLog:
    path = tmp_path / "log"
    path.write_text(text)
    return read_foreign(str(path))


def test_nemo_2_in_any_order_behind_a_launcher(tmp_path: Path) -> None:
    lines = ["i.cluster/0 Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/16", "seq_length: 4096"]
    for step in range(12):
        lines += [
            f" 0: Training epoch 0, iteration {step}/99 | lr: 3e-07 | global_batch_size: 128 | global_step: {step} | "
            f"max_memory_reserved: 64424509440 | reduced_train_loss: 11.03 | train_step_timing in s: 5.118"
            f" | consumed_samples: {128 * (step + 1)} | TFLOPS_per_GPU: 402.3",
            " 0: ",
        ]
    log = read(tmp_path, "\n".join(lines))
    assert (log.format, log.records) == ("nemo", 12)
    assert log.columns["step_time_s"].tolist() == [5.118] * 12
    assert log.columns["tflops_per_device"][0] == 402.3
    efficiency = examine_foreign(log.path).analysis.efficiency
    assert efficiency.tokens_per_s_per_device.median == pytest.approx(128 * 4096 / 5.118 / 16)


def test_nemo_2_without_a_global_step_counts_iterations(tmp_path: Path) -> None:
    lines = [f"Training epoch 0, iteration {step}/99 | train_step_timing in s: 2.5" for step in range(10, 20)]
    assert read(tmp_path, "\n".join(lines)).columns["step"].tolist() == list(range(10, 20))


def test_nemo_1_s_bar_is_redrawn(tmp_path: Path) -> None:
    bars = [
        f"Epoch 0: :  {step}%|#  | {step}/100 [00:{step:02}<05:00, v_num=1, reduced_train_loss=9.830, "
        f"global_step={step}.000, consumed_samples={step * 256}.0, train_step_timing in s=3.020]"
        for step in range(10, 30)
    ]
    log = read(tmp_path, "\r".join(bars))
    assert (log.format, log.records) == ("nemo", 20)
    assert log.columns["step_time_s"][0] == 3.02
    assert log.columns["consumed_samples"][0] == 2560


def test_megatron_bridge_s_line_has_no_space_before_its_unit(tmp_path: Path) -> None:
    line = "Step Time : 5.24s GPU utilization: 612.4MODEL_TFLOP/s/GPU\n"
    log = read(tmp_path, line * 10)
    assert (log.format, log.records) == ("megatron-bridge", 10)
    assert (log.columns["step_time_s"][0], log.columns["tflops_per_device"][0]) == (5.24, 612.4)


def test_automodel_prints_both_rates(tmp_path: Path) -> None:
    lines = [
        f"2025-09-17 10:00:{step:02} | INFO | root | step {step} | epoch 0 | loss 2.1514 | grad_norm 1.2 | "
        f"lr 1.0e-05 | mem 30.20 GiB | tps 12345.60(1543.20/gpu) | num_label_tokens 1{step}00"
        for step in range(10, 20)
    ]
    log = read(tmp_path, "\n".join(lines))
    assert (log.format, log.records) == ("nemo-automodel", 10)
    assert (log.columns["tokens_per_s"][0], log.columns["tokens_per_s_per_device"][0]) == (12345.6, 1543.2)
    assert log.columns["memory_bytes"][0] == pytest.approx(30.2 * 2**30)
