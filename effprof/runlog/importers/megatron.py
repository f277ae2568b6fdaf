"""Megatron-LM and its forks: Megatron-DeepSpeed, MindSpeed, Primus, GPT-NeoX; field names and order drift over years.

Lines follow `training_log` of Megatron-LM's training loop; of the `this/average` pairs that Primus prints the first is
the step's own. The dump of arguments before them describes the model, so that MFU can be recomputed without a config.
https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/training/training.py,
https://github.com/EleutherAI/gpt-neox/blob/main/megatron/logging.py
"""

from __future__ import annotations

from typing import Any

from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.table import Column, LineFormat

_WHOLE = r"(\d+)(?![\d.]*\d)"
_FLAG = r"(True|False)"


def _argument(*names: str, value: str = _WHOLE) -> str:
    """Where the dump of arguments that begins a log holds a value; GPT-NeoX appends `....updated` or `default`."""
    return rf"(?:^|\s)(?:{'|'.join(names)}) \.+ {value}"


def _describe_model(log: ForeignLog) -> None:
    """Take the arguments of the dump as the dtype and the model they describe, as a `transformers` config names it."""
    arguments = {name: log.facts.pop(name) for name in list(log.facts) if name.startswith(_PREFIX)}
    for dtype in ("bf16", "fp16"):
        if arguments.get(f"{_PREFIX}{dtype}") == "True":
            log.facts.setdefault("dtype", dtype)
    model = _model(arguments)
    log.facts |= {ours: arguments[name] for name, ours in _KEPT.items() if name in arguments}
    if model is not None:
        log.facts["model"] = model
        is_padded = "argument.vocabulary" not in arguments
        log.notes.append(
            (
                "model_from_arguments",
                f"the model is that of the log's arguments ({model['model_type']}-shaped, {_VOCABULARIES[is_padded]})",
            )
        )


_PREFIX = "argument."
_VOCABULARIES = {True: "with the padded vocabulary", False: "with the vocabulary before padding"}
_KEPT = {"argument.layers": "layers", "argument.hidden": "hidden"}


def _model(arguments: dict[str, Any]) -> dict[str, Any] | None:
    """A GPT with GELU is shaped as gpt2, one with SwiGLU as Llama or, with experts, as Mixtral; None for others."""
    given = {name.removeprefix(_PREFIX): value for name, value in arguments.items()}
    given.setdefault("vocabulary", given.get("padded_vocabulary"))
    needed = ("layers", "hidden", "heads", "ffn_hidden", "vocabulary")
    is_gated = given.get("swiglu") == "True"
    has_experts = isinstance(given.get("experts"), int)
    is_grouped = given.get("grouped_queries") == "True"
    unknown = (
        not all(isinstance(given.get(name), int) for name in needed)
        or given.get("latent_attention") == "True"
        or isinstance(given.get("shared_expert_hidden"), int)
        or (not is_gated and (has_experts or is_grouped))
        or (has_experts and not isinstance(given.get("experts_per_token"), int))
    )
    if unknown:
        return None
    if not is_gated:
        return {
            "model_type": "gpt2",
            "n_layer": given["layers"],
            "n_embd": given["hidden"],
            "n_head": given["heads"],
            "n_inner": given["ffn_hidden"],
            "n_positions": given.get("positions", 1024),
            "vocab_size": given["vocabulary"],
        }
    config = {
        "model_type": "llama",
        "num_hidden_layers": given["layers"],
        "hidden_size": given["hidden"],
        "num_attention_heads": given["heads"],
        "num_key_value_heads": given.get("key_value_heads", given["heads"]) if is_grouped else given["heads"],
        "intermediate_size": given["ffn_hidden"],
        "vocab_size": given["vocabulary"],
        "tie_word_embeddings": given.get("untied") != "True",
    }
    if isinstance(given.get("head_size"), int):
        config["head_dim"] = given["head_size"]
    if has_experts:
        config |= {
            "model_type": "mixtral",
            "num_local_experts": given["experts"],
            "num_experts_per_tok": given["experts_per_token"],
            "intermediate_size": given.get("expert_hidden", given["ffn_hidden"]),
        }
    return config


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
        "loss": Column(r"\blm[ _-]loss(?: value)?\s*[:=]\s*{n}"),
        "memory_bytes": Column(r"max_memory_allocated\(GB\)\s*[:=]\s*{n}", 2**30),
    },
    facts={
        "world_size": r"(?:^|\s)(?:using )?world[ _]size(?::| \.+| =) *(\d+)",
        "data_parallel_size": r"data[-_]parallel[-_ ]size(?::| \.+) *(\d+)",
        "sequence_length": r"(?:(?:^|\s)(?:encoder_)?seq_length \.+ |actual_seqlen= *)(\d+)",
        "global_batch": _argument("global_batch_size", "train_batch_size"),
        "micro_batch": _argument("micro_batch_size", "train_micro_batch_size_per_gpu"),
        "dtype": _argument("params_dtype", "precision", value=r"([a-z]\w*(?:\.\w+)?)"),
        "argument.bf16": _argument("bf16", value=_FLAG),
        "argument.fp16": _argument("fp16", value=_FLAG),
        "argument.layers": _argument("num_layers"),
        "argument.hidden": _argument("hidden_size"),
        "argument.heads": _argument("num_attention_heads"),
        "argument.ffn_hidden": _argument("ffn_hidden_size"),
        "argument.head_size": _argument("kv_channels"),
        "argument.key_value_heads": _argument("num_query_groups"),
        "argument.grouped_queries": _argument("group_query_attention", value=_FLAG),
        "argument.vocabulary": r"padded vocab \(size: (\d+)\)",
        "argument.padded_vocabulary": _argument("padded_vocab_size"),
        "argument.positions": _argument("max_position_embeddings"),
        "argument.swiglu": _argument("swiglu", value=_FLAG),
        "argument.untied": _argument("untie_embeddings_and_output_weights", value=_FLAG),
        "argument.latent_attention": _argument("multi_latent_attention", value=_FLAG),
        "argument.experts": _argument("num_experts", "num_moe_experts"),
        "argument.experts_per_token": _argument("moe_router_topk"),
        "argument.expert_hidden": _argument("moe_ffn_hidden_size"),
        "argument.shared_expert_hidden": _argument("moe_shared_expert_intermediate_size"),
    },
    # Megatron-DeepSpeed's own timer prints a line for each of Megatron's, which says less
    weight=2.0,
    finish=_describe_model,
)
