"""Follows every tensor of one live optimizer step, once and only when asked: the truth where no allocator counts.

The tracker is a torch dispatch mode: it looks at what operations return and changes none of it, so that training stays
bit-identical; the step it watches takes several times longer, all others are as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from effprof.measure.memory_forecast import live_facts

if TYPE_CHECKING:
    import torch

    from effprof.workload.memory_live import LiveTensors


class MemoryTracker:
    """Watches the second optimizer step, all its micro-batches: the first one makes whatever is made lazily.

    Args:
        module: what is trained.

    Attributes:
        is_due: whether a step begins with the next micro-batch that is to be watched.
        is_done: whether there is nothing more to watch.
        facts: what was seen; None with a `reason`.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._live: LiveTensors | None = None
        self.is_due = False
        self.is_done = False
        self.reason = "training ended before its second step"
        self.facts: dict[str, Any] | None = None

    def begin(self, batch: Any, optimizers: Iterable[Any] = ()) -> None:
        """A micro-batch begins."""
        if not self.is_due or self.is_done:
            return
        self.is_due = False
        if _is_compiled(self._module):
            self.reason, self.is_done = "the module is compiled: a dispatch mode would make it slow for good", True
            return
        import torch
        from torch.utils._pytree import tree_leaves

        from effprof.workload.memory_live import LiveTensors

        parameters = list(self._module.parameters())
        live = LiveTensors(parameters)
        states = [value for optimizer in optimizers for state in _states(optimizer) for value in tree_leaves(state)]
        held = [*parameters, *self._module.buffers(), *states, *tree_leaves(batch)]
        live.know(tensor for tensor in held if isinstance(tensor, torch.Tensor))
        live.hold_gradients()
        live.__enter__()  # type: ignore[no-untyped-call]
        self._live = live

    def end(self) -> bool:
        """The step is over, or training is; True where this was the one that was watched."""
        live, self._live = self._live, None
        if live is None:
            return False
        self.is_done = True
        live.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.facts = live_facts(live.result())
        return True


def _states(optimizer: Any) -> Iterable[Any]:
    return [dict(state) for state in optimizer.state.values() if isinstance(state, Mapping)]


def _is_compiled(module: torch.nn.Module) -> bool:
    return any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )
