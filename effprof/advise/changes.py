"""The changes that a trial can make to a training without touching its code: the vocabulary that rules, trials and
callbacks share. A trial's changes travel as JSON in the environment variable `EFFPROF_TRIAL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effprof.errors import EffprofError


@dataclass(frozen=True)
class Change:
    """One setting that can be overridden."""

    name: str
    type: type | tuple[type, ...]
    meaning: str
    can_change_loss: bool  # whether the loss must be compared for damage
    choices: tuple[Any, ...] = ()


CHANGES = {
    change.name: change
    for change in (
        Change("precision", str, "the Trainer's `precision`", True),
        Change("matmul_precision", str, "torch.set_float32_matmul_precision", True, ("highest", "high", "medium")),
        Change("micro_batch", int, "samples per micro-batch; accumulation keeps the global batch", True),
        Change("accumulate", int, "micro-batches per optimizer step", True),
        Change("compile", (bool, str), "torch.compile of the model, true or a mode", True),
        Change("num_workers", int, "worker processes of the DataLoader", False),
        Change("pin_memory", bool, "page-locked batches", False),
        Change("persistent_workers", bool, "workers that live over epochs", False),
        Change("prefetch_factor", int, "batches each worker prepares ahead", False),
        Change("fused_optimizer", bool, "`fused=True` of torch's optimizers", True),
        Change("gradient_checkpointing", (bool, str), "recompute: true, false or `selective`", True),
        Change("sdpa_backend", str, "only this backend of scaled_dot_product_attention", True),
        Change("attn_implementation", str, "attention of a transformers model", True),
        Change("experts_implementation", str, "expert GEMMs of a transformers model", True),
        Change("channels_last", bool, "NHWC memory format of convolutions", True),
        Change("trim_padding", bool, "columns that are padding in every row are cut from the batch", True),
        Change("length_grouping", bool, "batches of samples of similar length, shuffled in windows", True),
        Change("log_every_n_steps", int, "how often the Trainer logs", False),
        Change("gc_every_n_steps", int, "Python's collector runs only every n steps", False),
        Change("disable_callbacks", list, "class names of callbacks to leave out", False),
        Change("detect_anomaly", bool, "autograd's anomaly detection", False),
        Change("deterministic", bool, "deterministic algorithms", True),
        Change("cudnn_benchmark", bool, "cuDNN's search for the fastest convolution", True),
        Change("threads", int, "threads of torch on a CPU", False),
        Change("find_unused_parameters", bool, "DistributedDataParallel's search of the graph", False),
        Change("bucket_cap_mb", int, "DistributedDataParallel's bucket size, MiB", False),
        Change("environment", dict, "environment variables of the process", False),
    )
}


def check_changes(changes: Mapping[str, Any]) -> None:
    """Refuses a change that is not known, or not of its type.

    Raises:
        EffprofError: says which, and what there is.
    """
    for name, value in changes.items():
        change = CHANGES.get(name)
        if change is None:
            raise EffprofError(f"{name}: no such change", f"there are: {', '.join(CHANGES)}")
        is_number_as_bool = isinstance(value, bool) and change.type is int
        if not isinstance(value, change.type) or is_number_as_bool or (change.choices and value not in change.choices):
            wanted = " or ".join(map(str, change.choices)) or change.meaning
            raise EffprofError(f"{name}={value!r}: not a value of this change", f"it takes {wanted}")
