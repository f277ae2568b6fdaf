"""All facts that a training loop's own objects tell, whichever framework runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from effprof.measure.facts.loader import host_cpus, loader_facts
from effprof.measure.facts.model import model_facts
from effprof.measure.facts.numerics import numerics_facts
from effprof.measure.facts.optimizer import optimizer_facts
from effprof.measure.facts.read import read_facts

if TYPE_CHECKING:
    import torch


def loop_facts(
    module: torch.nn.Module | None,
    optimizers: Sequence[Any],
    loader: Any,
    device_type: str,
    device_index: int = 0,
) -> dict[str, Any]:
    """Settings of the model, its optimizers and its loader, by their names in `effprof.runlog.settings`.

    Args:
        module, loader: None where not known.
        optimizers: None among them is passed over.
    """
    return {
        **read_facts({"host_cpus": lambda _: host_cpus()}, None),
        **numerics_facts(module, device_type, device_index),
        **model_facts(module),
        **optimizer_facts(optimizers),
        **loader_facts(loader),
    }
