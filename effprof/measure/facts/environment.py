"""Facts of the process: versions of what torch is built on, and the variables that change speed or memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from effprof.measure.facts.read import read_facts
from effprof.runlog.settings import ENVIRONMENT


def environment_facts(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What `run.json`'s `software` holds beside the packages' versions. Other variables are nobody's business."""
    return read_facts(_READERS, os.environ if environment is None else environment)


def _cuda(_: Any) -> str | None:
    import torch

    return torch.version.cuda


def _hip(_: Any) -> str | None:
    import torch

    return torch.version.hip


def _cudnn(_: Any) -> Any:
    import torch

    return torch.backends.cudnn.version()  # type: ignore[no-untyped-call]


def _nccl(_: Any) -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    import torch.cuda.nccl

    return ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]


_READERS = {
    "cuda": _cuda,
    "hip": _hip,
    "cudnn": _cudnn,
    "nccl": _nccl,
    "environment": lambda variables: {name: variables[name] for name in ENVIRONMENT if name in variables},
}
