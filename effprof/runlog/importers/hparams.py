"""Settings that loggers save beside their figures: Lightning's `hparams.yaml`, `config.yaml` of Weights & Biases.

Their leaves are read line by line and nothing is constructed: real files hold tags of Python objects, which no safe
reader of YAML takes and no tool should. A name may stand at any depth; the first with a value counts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

NAME = "hparams.yaml"
_MOST_BYTES = 1 << 20
_LEAF = re.compile(
    r"""^\s*(?:-\ )?['"]?(?P<name>[A-Za-z_]\w*)['"]?:\s+   # a key, in quotes or not
    ['"]?(?P<value>[^\s'"!\#{\[&*|>][^'"\#]{0,200}?)['"]?  # a plain value: no tag, list, mapping, anchor or block
    \s*(?:\#.*)?$""",
    re.VERBOSE,
)
_SETTING = re.compile(r"([A-Za-z_]\w*):\s*$")  # a key at the margin whose value follows below
# Fact → names that it goes by, best first. How many batches a step accumulates and on how many devices is not derived.
_NAMES = {
    "sequence_length": ("max_seq_len", "seq_len", "seq_length", "sequence_length", "block_size", "context_length"),
    "micro_batch": ("micro_batch_size", "per_device_train_batch_size", "batch_size"),
    "accumulate": ("accumulate_grad_batches", "gradient_accumulation_steps"),
    "world_size": ("devices",),
}
_DTYPES = {"bf16": "bf16", "16": "fp16", "fp16": "fp16", "32": "fp32", "fp32": "fp32", "64": "fp64"}


def facts_beside(path: str) -> dict[str, Any]:
    """Facts of the run that a file of figures belongs to; empty where no `hparams.yaml` lies beside it."""
    return facts_in(Path(path).parent / NAME)


def facts_in(path: Path) -> dict[str, Any]:
    """Facts of a run from its settings; empty where there is no such file.

    `devices` counts only where the run has one node by the same settings, and is a number.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            leaves = _leaves(file.read(_MOST_BYTES))
    except OSError:
        return {}
    facts: dict[str, Any] = {}
    for fact, names in _NAMES.items():
        value = next((leaves[name] for name in names if leaves.get(name, "").isdigit()), None)
        if value is not None and 0 < int(value) < 1 << 31:
            facts[fact] = int(value)
    if leaves.get("num_nodes", "1") != "1":
        facts.pop("world_size", None)
    dtype = _DTYPES.get(leaves.get("precision", "").partition("-")[0])
    if dtype is None:  # switches of transformers' Trainer
        dtype = next((name for name in ("bf16", "fp16") if leaves.get(name) == "true"), None)
    return facts | ({"dtype": dtype} if dtype else {})


def _leaves(text: str) -> dict[str, str]:
    leaves: dict[str, str] = {}
    setting = ""
    for line in text.splitlines():
        if len(line) >= 1000:
            continue
        if (begun := _SETTING.match(line)) is not None:
            setting = begun[1]
        elif (found := _LEAF.match(line)) is not None:
            # W&B says `name:` and below it `value: 8`
            name = setting if found["name"] == "value" and line[0].isspace() else found["name"]
            leaves.setdefault(name, found["value"].strip())
    return leaves
