"""Every dialect of docs/logs.md, in lines made after what its tool prints: format, steps, times, rates, claims."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from effprof.analysis.foreign import examine_foreign


@dataclass(frozen=True)
class Dialect:
    """A line per step; `{n}` is the step, `{s}` its second of the minute, `{c}` a count that grows by 1,024 a step."""

    form: str
    line: str
    step_s: float | None = None
    tokens_per_s: float | None = None
    per_device: float | None = None
    claimed: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        return self.form + self.note


DIALECTS = [
    Dialect("nanogpt", "iter {n}: loss 3.1000, time 250.00ms, mfu 31.20%", 0.25, claimed={"mfu": 0.312}),
    Dialect(
        "nanochat",
        "step {n:05d}/21400 (0.01%) | loss: 3.100000 | lrm: 1.00 | dt: 250.00ms | tok/sec: 1,048,576 | mfu: 45.10 | "
        "total time: 0.02m",
        0.25, 1_048_576, claimed={"mfu": 0.451},
    ),
    Dialect(
        "llm.c",
        "step {n}/19560 | loss 3.100000 (+0.10z)| norm 0.5000 (nanz)| lr 6.00e-04 | 250.00 ms | 49.5% bf16 MFU | "
        "2097152 tok/s",
        0.25, 2_097_152, claimed={"mfu": 0.495},
    ),
    Dialect(
        "torchtitan",
        "[rank0]:[titan] 2025-01-01 10:00:{s:02d},000 - root - INFO - \x1b[31mstep: {n}  \x1b[32mloss:  3.1000  "
        "grad_norm:  1.0000  memory: 35.10GiB(44.30%)  tps: 6,100  tflops: 310.20  mfu: 31.36%\x1b[39m",
        claimed={"mfu": 0.3136, "tflops_per_device": 310.2},
    ),
    Dialect(
        "olmo",
        "2025-01-01 10:00:{s:02d}.000\tINFO\t[step={n}/1000,epoch=1]\n    train/CrossEntropyLoss=3.100\n"
        "    throughput/device/TPS=12,300\n",
    ),
    Dialect(
        "nanotron",
        "01/01/2025 10:00:{s:02d} [INFO|DP=0|PP=0|TP=0]: iteration: {n} / 1000 | consumed_tokens: 85.8G | "
        "elapsed_time_per_iteration_ms: 11.5K | tokens_per_sec: 22.8K | tokens_per_sec_per_gpu: 11.4K | "
        "global_batch_size: 64 | lm_loss: 3.1 | lr: 0.0003 | model_tflops_per_gpu: 150.2 | "
        "hardware_tflops_per_gpu: 160.1",
        11.5, 22_800, 11_400, {"tflops_per_device": 150.2},
    ),
    Dialect(
        "nemo",
        " 0: Training epoch 0, iteration {n}/999 | lr: 0.0003 | global_batch_size: 64 | global_step: {n} | "
        "max_memory_reserved: 70000000000 | reduced_train_loss: 3.1 | train_step_timing in s: 2.5 | "
        "consumed_samples: {c} | TFLOPS_per_GPU: 410.5",
        2.5, claimed={"tflops_per_device": 410.5},
    ),
    Dialect(
        "megatron-bridge", "Step Time : 2.5s GPU utilization: 410.5MODEL_TFLOP/s/GPU", 2.5,
        claimed={"tflops_per_device": 410.5},
    ),
    Dialect(
        "nemo-automodel",
        "2025-01-01 10:00:{s:02d} | INFO | root | step {n} | epoch 0 | loss 3.1000 | grad_norm 1.0 | lr 1e-05 | "
        "mem 30.10 GiB | tps 24000.00(3000.00/gpu) | num_label_tokens 9000",
        None, 24_000, 3_000,
    ),
    Dialect(
        "megatron-lm",
        " [2025-01-01 10:00:{s:02d}] iteration {n:8d}/ 1000 | consumed samples: {c:12d} | elapsed time per iteration "
        "(ms): 2500.0 | throughput per GPU (TFLOP/s/GPU): 410.5 | learning rate: 3.0E-04 | global batch size: 1024 | "
        "lm loss: 3.1E+00 | load_balancing_loss: 1.0E+00 | loss scale: 1.0 | grad norm: nan | "
        "number of skipped iterations: 0 | number of nan iterations: 0 |",
        2.5, claimed={"tflops_per_device": 410.5},
    ),
    Dialect(
        "megatron-lm",
        " iteration {n:8d}/ 1000 | consumed samples: {c:12d} | elapsed time per iteration (ms): 2500.0/2610.2 | "
        "throughput per GPU (TFLOP/s/GPU): 410.5/399.0 | tokens per GPU (tokens/s/GPU): 9000.0/8800.0 | "
        "learning rate: 3.0E-04 | global batch size: 1024 | lm loss: 3.1E+00 | loss scale: 1.0 |",
        2.5, None, 9_000, {"tflops_per_device": 410.5}, note=" of Primus",
    ),
    Dialect(
        "megatron-lm",
        " iteration {n:8d}/ 1000 | consumed samples: {c:12d} | consumed tokens: {c:12d} | elapsed time per iteration "
        "(s): 2.5 | learning rate: 3.000E-04 | global batch size: 1024 | loss scale: 1.0 | grad norm: nan | "
        "samples per second: 409.6 | TFLOPs: 41.5 |",
        2.5, claimed={"tflops_per_device": 41.5}, note=" with DeepSpeed",
    ),
    Dialect(
        "deepspeed",
        "[2025-01-01 10:00:{s:02d},000] [INFO] [timer.py:260:stop] epoch=0/micro_step={n}/global_step={n}, "
        "RunningAvgSamplesPerSec=39.1, CurrSamplesPerSec=40.0, MemAllocated=4.4GB, MaxMemAllocated=9.1GB",
    ),
    Dialect(
        "megatron-lm",
        " samples/sec: 409.6 | iteration {n:8d}/ 1000 | elapsed time per iteration (ms): 2500.0 | learning rate: "
        "3.000E-04 | approx flops per GPU: 41.5TFLOPS | lm_loss: 3.1E+00 | number of skipped iterations: 0 |",
        2.5, claimed={"tflops_per_device": 41.5}, note=" as GPT-NeoX",
    ),
    Dialect(
        "mindformers",
        "2025-01-01 10:00:{s:02d},000 - mindformers[callback.py:1] - INFO - {{ Epoch:[  1/  1], step:[{n:5d}/ 1000], "
        "loss: 3.100, per_step_time: 2500ms, lr: 1e-05, overflow cond: False, loss_scale: 1.0, global_norm: [1.0], "
        "train_throughput_per_npu: 150.2T",
        2.5, claimed={"tflops_per_device": 150.2},
    ),
    Dialect(
        "paddlenlp",
        "[2025-01-01 10:00:{s:02d},000] [ INFO] - loss: 3.1, learning_rate: 1e-05, global_step: {n}, "
        "current_memory_allocated: 30.1, interval_runtime: 2.5, interval_samples_per_second: 25.6, "
        "interval_tokens_per_second_per_device: 6500.0, interval_hardware_tflops_per_device: 150.2, "
        "interval_steps_per_second: 0.4, progress_or_epoch: 0.1",
        2.5, None, 6_500,
    ),
    Dialect(
        "paddleseg",
        "2025-01-01 10:00:{s:02d} [INFO]\t[TRAIN] epoch: 1, iter: {n}/80000, loss: 3.1000, lr: 0.001000, "
        "batch_cost: 0.2500, reader_cost: 0.00100, ips: 32.0000 samples/sec | ETA 01:00:00",
        0.25,
    ),
    Dialect(
        "mmengine",
        "2025/01/01 10:00:{s:02d} - mmengine - INFO - Iter(train) [{n:5d}/80000]  lr: 1.0000e-04  eta: 1:00:00  "
        "time: 0.2500  data_time: 0.0010  memory: 9000  loss: 3.1000  tflops: 40.5000  tokens_per_sec: 6500.0",
        0.25,
    ),
    Dialect(
        "torchtune", "Step {n} | loss:3.1 lr:2e-05 tokens_per_second_per_gpu:6500.5 peak_memory_active:30.1 ",
        None, None, 6_500.5,
    ),
    Dialect(
        "fairseq",
        "2025-01-01 10:00:{s:02d} | INFO | train_inner | epoch 001: {n} / 1000 loss=3.1, ppl=8, wps=65000.0, ups=0.4, "
        "wpb=162500, bsz=64, num_updates={n}, lr=1e-05, gnorm=1.0, clip=0, train_wall=2, wall=5",
        None, 65_000,
    ),
    Dialect(
        "composer",
        "[epoch=0][batch={n}/1000]:\n\t Train time/batch: {n}\n\t Train loss/train/total: 3.1\n"
        "\t Train throughput/device/tokens_per_sec: 6500.5\n\t Train throughput/device/mfu: 0.41\n",
        claimed={"mfu": 0.41},
    ),
    Dialect(
        "llamafactory",
        '{{"current_steps": {n}, "total_steps": 1000, "loss": 3.1, "lr": 1e-05, "epoch": 0.1, "percentage": 1.0, '
        '"elapsed_time": "0:00:{s:02d}", "remaining_time": "1:00:00", "throughput": 0, "total_tokens": 0}}',
    ),
    Dialect(
        "libai",
        "[01/01 10:00:{s:02d} lb.utils.events]:  eta: 1:00:00  iteration: {n}/1000  consumed_samples: {c}  "
        "total_loss: 3.1  time: 0.2500 s/iter  data_time: 0.0010 s/iter total_throughput: 256.0 samples/s lr: 1.0e-04",
    ),
    Dialect("tinygrad", "{n:4d} 250.0 ms run, 3.10 loss, 0.000100 LR, 9.00 GB used, 40500.00 GFLOPS"),
    Dialect(
        "mlx",
        "Iter {n}: Train loss 3.100, Learning Rate 1.000e-05, It/sec 4.000, Tokens/sec 4096.000, Trained Tokens {c}, "
        "Peak mem 30.100 GB",
        0.25, 4_096,
    ),
]  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_dialect_s_steps_times_rates_and_claims(dialect: Dialect, tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("\n".join(dialect.line.format(n=n, s=2 * n, c=1024 * n) for n in range(10, 22)) + "\n")
    analysis = examine_foreign(str(path)).analysis
    source, efficiency = analysis.source, analysis.efficiency
    assert source is not None
    assert (source.format, source.steps) == (dialect.form, 12)
    if dialect.step_s is not None:
        assert efficiency.step_time_s.median == pytest.approx(dialect.step_s)
    if dialect.tokens_per_s is not None:
        assert efficiency.tokens_per_s.median == pytest.approx(dialect.tokens_per_s)
    if dialect.per_device is not None:
        assert efficiency.tokens_per_s_per_device.median == pytest.approx(dialect.per_device)
    for name, value in dialect.claimed.items():
        assert getattr(source.claimed, name) == pytest.approx(value), name
