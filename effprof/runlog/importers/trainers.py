"""Trainers that print one line per step: MaxText, InternEvo, torchtune, nanotron, fairseq, LitGPT and others.

Each row follows what the tool's own code prints; where a rate is a running average, `averages` says so.
"""

from __future__ import annotations

import numpy as np

from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.table import Column, LineFormat

_MIB = 2**20
_GIB = 2**30


def _micro_batch_times(log: ForeignLog) -> None:
    """LitGPT's time is of one micro-batch: a step takes as many of them as iterations pass per step."""
    iterations, steps = log.columns.pop("iteration"), log.columns["step"]
    per_step = (iterations[-1] - iterations[0]) / (steps[-1] - steps[0]) if steps[-1] > steps[0] else np.nan
    if abs(per_step - round(per_step)) > 0.02 * per_step or not per_step >= 1:
        log.columns.pop("step_time_s", None)
        log.notes.append(("micro_batches_unknown", "it is not clear how many iterations a step has; no step time"))
    else:
        log.columns["step_time_s"] = log.columns["step_time_s"] * round(per_step)


FORMATS = [
    LineFormat(
        name="maxtext",
        framework="MaxText",
        step=r"completed step: (?P<step>{n}),",
        columns={
            "step_time_s": Column(r"\bseconds: {n}"),
            "tflops_per_device": Column(r"TFLOP/s/device: {n}"),
            "tokens_per_s_per_device": Column(r"Tokens/s/device: {n}"),
            "loss": Column(r"\bloss: {n}"),
        },
        facts={"world_size": r"Num_devices: (\d+)", "device": r"Running on (TPU \S+)"},
    ),
    LineFormat(
        name="internevo",
        framework="InternEvo",
        step=r"\btflops=.*\bstep=(?P<step>{n})[ ,]",
        columns={
            "tflops_per_device": Column(r"\btflops={n}"),
            "tokens_per_s_per_device": Column(r"\btgs \(tokens/gpu/second\)={n}"),
            "consumed_tokens": Column(r"\bnum_consumed_tokens={n}"),
            "loss": Column(r"\bloss={n}"),
        },
        facts={"world_size": r"\bworld_size[=:'\" ]+(\d+)"},
    ),
    LineFormat(
        name="torchtune",
        framework="torchtune",
        step=r"\bStep (?P<step>{n}) \| (?=\S*loss:)",
        columns={
            "loss": Column(r"\bloss:{n}"),
            "tokens_per_s_per_device": Column(r"\btokens_per_second_per_gpu:{n}"),
            "memory_bytes": Column(r"\bpeak_memory_active:{n}", _GIB),
        },
    ),
    LineFormat(
        name="nanotron",
        framework="nanotron",
        step=r"\biteration: (?P<step>{n}) / \d+ \|.*elapsed_time_per_iteration_ms",
        columns={
            "step_time_s": Column(r"elapsed_time_per_iteration_ms: {n}", 1e-3),
            "consumed_tokens": Column(r"consumed_tokens: {n}"),
            "tokens_per_s": Column(r"tokens_per_sec: {n}"),
            "tokens_per_s_per_device": Column(r"tokens_per_sec_per_gpu: {n}"),
            "samples": Column(r"global_batch_size: {n}"),
            "tflops_per_device": Column(r"model_tflops_per_gpu: {n}"),
            "loss": Column(r"lm_loss: {n}"),
        },
        weight=3.0,  # Megatron-LM's lines are told by words that these hold as well
    ),
    LineFormat(
        name="litgpt",
        framework="LitGPT",
        step=r"\biter {n} step (?P<step>{n}) \| loss train:.*\(step\)",
        columns={
            "iteration": Column(r"\biter {n} step"),
            "loss": Column(r"loss train: {n}"),
            "step_time_s": Column(r"iter time: {n} ms", 1e-3),
        },
        finish=_micro_batch_times,
    ),
    LineFormat(
        name="fairseq",
        framework="fairseq",
        step=r"\btrain_inner \|.*\bnum_updates[= ]+(?P<step>{n})",
        columns={
            "loss": Column(r"\bloss[= ]+{n}"),
            "tokens_per_s": Column(r"\bwps[= ]+{n}"),
            "tokens": Column(r"\bwpb[= ]+{n}"),
            "samples": Column(r"\bbsz[= ]+{n}"),
            "elapsed_s": Column(r"\bwall[= ]+{n}"),
        },
    ),
    LineFormat(
        name="xtuner",
        framework="XTuner",
        step=r"\[XTuner\].*\bStep (?P<step>{n})/\d+ ",
        columns={
            "input_wait_s": Column(r"\bdata_time: {n}"),
            "step_time_s": Column(r"\btime: {n}"),
            "tokens": Column(r"\btext_tokens: {n}"),
            "tokens_per_s_per_device": Column(r"(?<!e2e_)\btgs: {n}"),
            "memory_bytes": Column(r"\bmax_memory: {n} GB", _GIB),
            "loss": Column(r"\breduced_llm_loss: {n}"),
        },
        per_rank=True,
    ),
    LineFormat(
        name="mmengine",
        framework="MMEngine",
        step=r"\b(?:Iter|Epoch)\(train\)\s+(?:\[\d+\])?\[\s*(?P<step>{n})/\d+\]",
        columns={
            "step_time_s": Column(r"(?<!data_)\btime: {n}"),
            "input_wait_s": Column(r"\bdata_time: {n}"),
            "memory_bytes": Column(r"\bmemory: {n}", _MIB),
            "loss": Column(r"\bloss: {n}"),
            "tflops_per_device": Column(r"\btflops: {n}"),
            "tokens_per_s_per_device": Column(r"\btokens_per_sec: {n}"),
        },
    ),
    LineFormat(
        name="mindformers",
        framework="MindFormers",
        step=r"\bstep:\[\s*(?P<step>{n})/\s*\d+\], loss:.*per_step_time:",
        columns={
            "loss": Column(r"\bloss: *{n}"),
            "step_time_s": Column(r"per_step_time: *{n} *ms", 1e-3),
            # "150.2T": the letter is the unit and not a factor of it
            "tflops_per_device": (
                Column(r"train_throughput_per_npu: *{n}(?<=T)", 1e-12),
                Column(r"train_throughput_per_npu: *{n}"),
            ),
        },
    ),
    LineFormat(
        name="paddlenlp",
        framework="PaddleNLP",
        step=r"\bloss: \S+, learning_rate: \S+, global_step: (?P<step>{n}),",
        columns={
            "loss": Column(r"\bloss: {n}"),
            "interval_s": Column(r"\binterval_runtime: {n}"),
            "samples_per_s": Column(r"\binterval_samples_per_second: {n}"),
            "tokens_per_s_per_device": Column(r"\binterval_tokens_per_second_per_device: {n}"),
            "tflops_per_device": Column(r"\binterval_hardware_tflops_per_device: {n}"),
        },
    ),
    LineFormat(
        name="paddleseg",
        framework="PaddleSeg",
        step=r"\[TRAIN\] epoch: \d+, iter: (?P<step>{n})/\d+,",
        columns={
            "loss": Column(r"\bloss: {n}"),
            "step_time_s": Column(r"\bbatch_cost: {n}"),
            "input_wait_s": Column(r"\breader_cost: {n}"),
            "samples_per_s": Column(r"\bips: {n} samples/sec"),
        },
    ),
    LineFormat(
        name="mlx",
        framework="MLX",
        step=r"\bIter (?P<step>{n}): Train loss ",
        columns={
            "loss": Column(r"Train loss {n}"),
            "tokens_per_s": Column(r"Tokens/sec {n}"),
            "consumed_tokens": Column(r"Trained Tokens {n}"),
            "memory_bytes": Column(r"Peak mem {n} GB", 1e9),
        },
        facts={"world_size": r"Node \d+ of (\d+)"},
    ),
    LineFormat(
        name="libai",
        framework="LiBai",
        step=r"\biteration: (?P<step>{n})/\d+ +consumed_samples:",
        columns={
            "consumed_samples": Column(r"consumed_samples: {n}"),
            "loss": Column(r"total_loss: {n}"),
            "step_time_s": Column(r"\btime: {n} s/iter"),
            "input_wait_s": Column(r"data_time: {n} s/iter"),
            "samples_per_s": Column(r"total_throughput: {n} samples/s"),
        },
        averages=frozenset({"step_time_s", "samples_per_s", "input_wait_s"}),
    ),
    LineFormat(
        name="tinygrad",
        framework="tinygrad",
        step=r"^\s*(?P<step>{n}) +{n} ?m?s run,.*GFLOPS",
        columns={
            "step_time_s": (Column(r"^\s*\d+ +{n} ?ms run", 1e-3), Column(r"^\s*\d+ +{n} ?s run")),
            "loss": Column(r"{n} loss"),
        },
        has_time=False,
    ),
]
