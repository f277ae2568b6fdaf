"""NeMo 2 and its progress bar of NeMo 1, Megatron-Bridge's performance line, NeMo Automodel.

NeMo 2's keys come in any order and its timing may be missing; a launcher's prefix and blank lines lie between.
https://github.com/NVIDIA/NeMo/blob/main/nemo/lightning/pytorch/callbacks/progress_printer.py,
https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/main/src/megatron/bridge/training/utils/train_utils.py,
https://github.com/NVIDIA-NeMo/Automodel/blob/main/nemo_automodel/recipes/llm/train_ft.py
"""

from __future__ import annotations

from effprof.runlog.importers.table import Column, LineFormat

# The same metrics, as `key: value` in NeMo 2 and as `key=value` behind NeMo 1's bar.
_METRICS: dict[str, Column | tuple[Column, ...]] = {
    "step_time_s": Column(r"train_step_timing in s[:=] ?{n}"),
    "samples": Column(r"\bglobal_batch_size[:=] ?{n}"),
    "consumed_samples": Column(r"\bconsumed_samples[:=] ?{n}"),
    "tflops_per_device": Column(r"\bTFLOPS_per_GPU[:=] ?{n}"),
    "tokens_per_s_per_device": Column(r"\btokens_per_sec(?:ond)?_per_gpu[:=] ?{n}"),
    "memory_bytes": (Column(r"\bmax_memory_reserved[:=] ?{n}"), Column(r"\bpeak_memory_usage[:=] ?{n}")),
    "loss": Column(r"\breduced_train_loss[:=] ?{n}"),
}
_FACTS = {
    "world_size": r"GLOBAL_RANK: \d+, MEMBER: \d+/(\d+)",
    "sequence_length": r"\b(?:encoder_)?seq_length['\"]?[:=] *(\d+)",
    "micro_batch": r"\bmicro_batch_size['\"]?[:=] *(\d+)",
    "global_batch": r"\bglobal_batch_size['\"]?[:=] *(\d+)",
}

FORMATS = [
    LineFormat(
        name="nemo",
        framework="NeMo",
        step=r"Training epoch \d+, iteration (?P<iteration>{n})/\d+ \|(?:.*\bglobal_step: (?P<step>{n}))?",
        columns=_METRICS,
        facts=_FACTS,
    ),
    LineFormat(
        name="nemo",
        framework="NeMo",
        step=r"\breduced_train_loss=.*\bglobal_step=(?P<step>{n})",
        columns=_METRICS,
        facts=_FACTS,
    ),
    LineFormat(
        name="megatron-bridge",
        framework="Megatron-Bridge",
        step=r"Step Time *: *{n} *s\b.*MODEL_TFLOP/s/GPU",
        columns={
            "step_time_s": Column(r"Step Time *: *{n} *s"),
            "tflops_per_device": Column(r"GPU utilization: *{n} *MODEL_TFLOP/s/GPU"),
        },
        facts=_FACTS,
    ),
    LineFormat(
        name="nemo-automodel",
        framework="NeMo Automodel",
        step=r"\bstep (?P<step>{n}) \| epoch \d+ \| loss ",
        columns={
            "loss": Column(r"\| loss {n}"),
            "tokens_per_s": Column(r"\btps {n}"),
            "tokens_per_s_per_device": Column(r"\btps [^(|]+\({n}/gpu\)"),
            "memory_bytes": Column(r"\bmem {n} GiB", 2**30),
            "loss_tokens": Column(r"\bnum_label_tokens {n}"),
        },
        facts={"world_size": r"\bworld_size['\"]?[:=] *(\d+)"},
    ),
]
