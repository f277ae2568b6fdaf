"""Megatron-LM and its forks: Megatron-DeepSpeed, MindSpeed, Primus, GPT-NeoX; field names and order drift over years.

Lines follow `training_log` of Megatron-LM's training loop; of the `this/average` pairs that Primus prints the first is
the step's own. https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/training/training.py
"""

from __future__ import annotations

from effprof.runlog.importers.table import Column, LineFormat


def _argument(*names: str) -> str:
    """Where the dump of arguments that begins a log holds a value."""
    return rf"(?:^|\s)(?:{'|'.join(names)}) \.+ (\d\S*|[a-z]\w*\.\w+)"


FORMAT = LineFormat(
    name="megatron-lm",
    framework="Megatron-LM",
    step=r"\biteration[ =:]+(?P<step>{n})\s*/\s*\d+ *\|.*elapsed[ _]time",
    columns={
        "step_time_s": (
            Column(r"elapsed[ _]time[ _]per[ _]iteration[ _]\(?ms\)?\s*[:=]\s*{n}", 1e-3),
            Column(r"elapsed[ _]time[ _]per[ _]iteration[ _]\(?s\)?\s*[:=]\s*{n}"),
        ),
        "consumed_samples": Column(r"consumed[ _]samples\s*[:=]\s*{n}"),
        "consumed_tokens": Column(r"consumed[ _]tokens\s*[:=]\s*{n}"),
        "samples": Column(r"global[ _]batch[ _]size\s*[:=]\s*{n}"),
        "samples_per_s": (Column(r"samples[ _]per[ _]second\s*[:=]\s*{n}"), Column(r"samples/sec\s*[:=]\s*{n}")),
        "tokens_per_s_per_device": (
            Column(r"tokens[ _]per[ _]gpu[ _]per[ _]second[^=:|]*[:=]\s*{n}"),
            Column(r"tokens per GPU \(tokens/s/GPU\)\s*[:=]\s*{n}"),
            Column(r"tokens/sec/gpu\s*[:=]\s*{n}"),
        ),
        "tflops_per_device": (
            Column(r"throughput per GPU \(TFLOP/s/GPU\)\s*[:=]\s*{n}"),
            Column(r"approx flops per GPU\s*[:=]\s*{n}"),
            Column(r"\bTFLOPS?[a-z_]*\s*[:=]\s*{n}"),
        ),
        "loss": Column(r"\blm[ _-]loss\s*[:=]\s*{n}"),
        "memory_bytes": Column(r"max_memory_allocated\(GB\)\s*[:=]\s*{n}", 2**30),
    },
    facts={
        "world_size": r"(?:^|\s)(?:using )?world[ _]size(?::| \.+| =) *(\d+)",
        "data_parallel_size": r"data[-_]parallel[-_ ]size(?::| \.+) *(\d+)",
        "sequence_length": r"(?:(?:^|\s)(?:encoder_)?seq_length \.+ |actual_seqlen= *)(\d+)",
        "global_batch": _argument("global_batch_size"),
        "micro_batch": _argument("micro_batch_size"),
        "layers": _argument("num_layers"),
        "hidden": _argument("hidden_size"),
        "heads": _argument("num_attention_heads"),
        "ffn_hidden": _argument("ffn_hidden_size"),
        "key_value_heads": _argument("num_query_groups"),
        "vocabulary": _argument("padded_vocab_size"),
        "experts": _argument("num_experts", "num_moe_experts"),
        "experts_per_token": _argument("moe_router_topk"),
        "dtype": _argument("params_dtype"),
    },
)
