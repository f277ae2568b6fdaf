"""The memory of one micro-batch, rehearsed on a fake copy: what autograd keeps and the most that is ever live.

Nothing is computed and nothing of the live module is touched. Unlike for the FLOPs, attention and experts run as they
do in training, because which kernel runs decides what is kept; only the masks that transformers makes under fake
tensors, and leaves out in training, are left out here too.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from effprof.workload.attention import _nested_configs
from effprof.workload.counter import CountFailed, OperationCounter
from effprof.workload.fake_copy import copy_as_fake, fake_batch, untouched_randomness
from effprof.workload.memory_live import LiveMemory, LiveTensors
from effprof.workload.operations import (
    _call,
    _compiler_off,
    _differentiate,
    _fake_mode,
    _loss_of,
    _quiet_logging,
    _training_step,
    unwrap,
)

_NAME = "effprof_memory"


@dataclass(frozen=True)
class RehearsedMemory:
    """Memory of one micro-batch on a fake copy.

    Attributes:
        live: what was live beside parameters and batch.
        assumptions: what was taken for granted because fake tensors hold no values.
        seconds: what the rehearsal took.
    """

    live: LiveMemory
    assumptions: tuple[str, ...]
    seconds: float


def rehearse_memory(
    module: nn.Module,
    batch: Any,
    *,
    step: Callable[[nn.Module, Any], Any] | None = None,
    context: Callable[[], AbstractContextManager[Any]] | None = None,
) -> RehearsedMemory:
    """Follow the tensors of one micro-batch forward and backward on a fake copy of `module`.

    Args:
        module: the module that is trained.
        batch: one micro-batch as the training step gets it.
        step: `step(copy, fake batch)` returns the loss; by default the module's training step, else its call.
        context: gives the context that the step runs in (autocast).

    Raises:
        CountFailed: with the reason, where the module cannot be copied or its step needs values.
    """
    start = time.perf_counter()
    counter, mode = OperationCounter(), _fake_mode()
    with untouched_randomness(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = copy_as_fake(unwrap(module), mode, counter)
        for parameter in twin.parameters():
            parameter.grad = None
        inputs = fake_batch(batch, mode)
        live = LiveTensors(twin.parameters())
        live.know([*twin.parameters(), *twin.buffers(), *_tensors(inputs)])
        with contextlib.ExitStack() as stack:
            # the counter answers questions about values; its counts are not used
            for each in (
                _quiet_logging(),
                _compiler_off(),
                torch.enable_grad(),
                mode,
                counter,
                live,
                _real_kernels(twin),
            ):
                stack.enter_context(each)
            with context() if context is not None else contextlib.nullcontext():
                loss = _call(step or _training_step, twin, inputs)
            loss = _only_loss(loss)
            _differentiate(loss, counter)
            del loss
    measured = live.result()
    return RehearsedMemory(measured, tuple(counter.assumptions), time.perf_counter() - start)


def _only_loss(outcome: Any) -> Any:
    """The loss alone: a trainer drops the other outputs of a step before the backward pass."""
    loss = _loss_of(outcome)
    return outcome if loss is None else loss


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@contextlib.contextmanager
def _real_kernels(module: nn.Module) -> Iterator[None]:
    """Let transformers' models in the copy run the kernels of a training without padding."""
    if "transformers" not in sys.modules or not _register():
        yield
        return
    seen: set[int] = set()
    for part in module.modules():
        for each in _nested_configs(getattr(part, "config", None)):
            if id(each) in seen or not hasattr(each, "_attn_implementation"):
                continue
            seen.add(id(each))
            if each._attn_implementation != "eager":
                each._attn_implementation_internal = _NAME
            if hasattr(each, "_experts_implementation"):
                each._experts_implementation_internal = _NAME
    yield


def _register() -> bool:
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
    except ImportError:
        return False
    AttentionInterface.register(_NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(_NAME, _mask)
    with contextlib.suppress(ImportError, AttributeError):
        from transformers.integrations.moe import ExpertsInterface

        ExpertsInterface.register(_NAME, _experts)
    return True


def _mask(*args: Any, **options: Any) -> torch.Tensor | None:
    """None where training passes no mask (no padding, no window in reach), else a mask of the right size."""
    keys, window = options.get("kv_length"), options.get("local_size")
    if window is None or keys is None or int(keys) <= int(window):
        return None
    queries = options.get("q_length", keys)
    shape = (int(options.get("batch_size", 1)), 1, int(queries), int(keys))
    return torch.empty(shape, dtype=torch.bool, device=options.get("device", "cpu"))


class _GroupedProduct(torch.autograd.Function):
    """Rows times their expert's matrix, in shapes: (S, in) and (E, in, out) give (S, out)."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return rows.new_empty((rows.shape[0], weight.shape[-1]))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        return torch.empty_like(rows), torch.empty_like(weight)


def _experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """transformers' grouped experts without the kernel, whose fake refuses most dtypes: same tensors, same sizes."""
    tokens, used = hidden_states.shape[0], top_k_index.shape[-1]
    flat = top_k_index.reshape(-1)
    order = torch.argsort(flat)
    back = torch.empty_like(order)
    rows = hidden_states[order // used]
    first = self.gate_up_proj if self.has_gate else self.up_proj
    product = _grouped(self, rows, first)
    product = self._apply_gate(product) if self.has_gate else self.act_fn(product)
    product = _grouped(self, product, self.down_proj)
    weighted = product * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    weighted = weighted[back]
    return weighted.view(tokens, used, hidden_states.shape[-1]).sum(dim=1).to(hidden_states.dtype)


def _grouped(self: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    matrix = weight if getattr(self, "is_transposed", False) else weight.transpose(-2, -1)
    product: torch.Tensor = _GroupedProduct.apply(rows.to(weight.dtype), matrix)  # type: ignore[no-untyped-call]
    return product


__all__ = ["CountFailed", "RehearsedMemory", "rehearse_memory"]
