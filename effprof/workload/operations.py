"""The operation count: one micro-batch forward and backward on a fake copy, every operation's FLOPs added up.

Nothing is computed and nothing of the live module is touched: parameters and batch become fake tensors (shapes without
memory), user code runs once on the copy, and what passes by is counted by `OperationCounter`.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from effprof.workload.attention import counting_attention
from effprof.workload.counter import AttentionShape, CountFailed, OperationCounter
from effprof.workload.fake_copy import _first_line, copy_as_fake, fake_batch, untouched_randomness
from effprof.workload.hf_attention import prepare_transformers

__all__ = ["CountFailed", "OperationCount", "count_operations", "count_training_step"]


@dataclass(frozen=True)
class OperationCount:
    """What one run of a function asks for, in FLOPs (a multiply-add is two).

    Attributes:
        flops: model FLOPs, recomputed activations left out.
        attention_flops: the part of `flops` spent on query-key pairs.
        attention: `attention_flops` by the attention's shape and mask.
        by_dtype: `flops` by the dtype of the multiplied matrices ("bf16"), so that autocast shows.
        by_operation: `flops` by operation name.
        recompute_flops: forward FLOPs that activation checkpointing runs again in the backward pass.
        uncounted: operations without a formula that may hold arithmetic.
        coverage: counted calls over counted and uncounted calls, 0 … 1.
        assumptions: what was taken for granted because fake tensors hold no values.
        seconds: what counting took.
    """

    flops: int
    attention_flops: int
    attention: Mapping[AttentionShape, int]
    by_dtype: Mapping[str, int]
    by_operation: Mapping[str, int]
    recompute_flops: int = 0
    uncounted: tuple[str, ...] = ()
    coverage: float = 1.0
    assumptions: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)


def count_operations(function: Callable[..., Any], *args: Any) -> OperationCount:
    """Count `function(*args)`; tensors among `args` are replaced by fakes and no value is computed.

    A module is copied first. For forward and backward of a training step use `count_training_step`.

    Raises:
        CountFailed: the function needs values that fake tensors do not have.
    """
    start = time.perf_counter()
    counter, mode = OperationCounter(), _fake_mode()
    if isinstance(function, nn.Module):
        function = copy_as_fake(function, mode, counter)
        prepare_transformers(function)
    with _watched(counter, mode, function if isinstance(function, nn.Module) else None):
        inputs = fake_batch(args, mode)
        _call(function, *inputs)
    return _result(counter, time.perf_counter() - start)


def count_training_step(
    module: nn.Module,
    batch: Any,
    *,
    step: Callable[[nn.Module, Any], Any] | None = None,
    context: Callable[[], AbstractContextManager[Any]] | None = None,
) -> OperationCount:
    """Count forward and backward of one micro-batch on a fake copy; the live module is left bit-identical.

    Args:
        module: the module that is trained (wrappers of DDP and torch.compile are looked through).
        batch: one micro-batch as the training step gets it.
        step: `step(copy, fake batch)` returns the loss; by default `copy.training_step(batch, 0)`, else the module is
            called with the batch.
        context: gives the context the step runs in (autocast).

    Raises:
        CountFailed: with the reason, where the module cannot be copied or its step needs values.
    """
    start = time.perf_counter()
    counter, mode = OperationCounter(), _fake_mode()
    with untouched_randomness():
        twin = copy_as_fake(unwrap(module), mode, counter)
        prepare_transformers(twin)
        with _watched(counter, mode, twin), contextlib.ExitStack() as stack:
            inputs = fake_batch(batch, mode)
            if context is not None:
                stack.enter_context(context())
            loss = _call(step or _training_step, twin, inputs)
            stack.close()  # the backward pass runs outside autocast, as trainers do it
            _differentiate(loss, counter)
    return _result(counter, time.perf_counter() - start)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's and data-parallel wrappers."""
    inner: Any = module
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif type(inner).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = inner.module
        else:
            return cast(nn.Module, inner)


def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True, static_shapes=True)


@contextlib.contextmanager
def _watched(counter: OperationCounter, mode: FakeTensorMode, module: nn.Module | None) -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        _quiet_logging(),
        _compiler_off(),
        torch.enable_grad(),
        mode,
        counter,
        counting_attention(counter, module),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Hold back what the rehearsal would log: the real step will log it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _compiler_off() -> Iterator[None]:
    # a compiled function that first runs under a dispatch mode stays slow for good, so it runs uncompiled here
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def _training_step(module: nn.Module, batch: Any) -> Any:
    training_step = getattr(module, "training_step", None)
    if callable(training_step):
        return _call_training_step(training_step, batch)
    if isinstance(batch, Mapping):
        return module(**batch)
    if isinstance(batch, (tuple, list)):
        try:
            return module(*batch)
        except TypeError:
            return module(batch[0])
    return module(batch)


def _call_training_step(training_step: Callable[..., Any], batch: Any) -> Any:
    """Lightning passes what the step's signature asks for: batch, index, data loader index, or an iterator."""
    names = list(inspect.signature(training_step).parameters)
    if "dataloader_iter" in names:
        return training_step(iter([(batch, 0, 0)]))
    offered = {"batch_idx": 0, "dataloader_idx": 0}
    by_name = {name: value for name, value in offered.items() if name in names}
    if len(names) - len(by_name) == 1:
        return training_step(batch, **by_name)
    return training_step(batch, *([0] * min(len(names) - 1, 2)))


def _call(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except CountFailed:
        raise
    except Exception as error:
        raise CountFailed(f"the step could not run on fake tensors: {_first_line(error)}") from error


def _differentiate(outcome: Any, counter: OperationCounter) -> None:
    loss = _loss_of(outcome)
    if loss is None:
        if not counter.saw_backward:
            raise CountFailed("the training step returned no loss to differentiate")
        return  # manual optimization has run its own backward passes
    try:
        loss.backward()
    except CountFailed:
        raise
    except Exception as error:
        raise CountFailed(f"the backward pass could not run on fake tensors: {_first_line(error)}") from error


def _loss_of(outcome: Any) -> Any:
    """The tensor to differentiate in what a step returned; without a loss, the sum of the first float output."""
    if isinstance(outcome, Mapping):
        for key in ("loss",):
            if isinstance(outcome.get(key), torch.Tensor):
                return outcome[key]
        outcome = list(outcome.values())
    loss = getattr(outcome, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss
    if isinstance(outcome, torch.Tensor):
        return (outcome if outcome.dim() == 0 else outcome.float().sum()) if outcome.requires_grad else None
    if isinstance(outcome, (tuple, list)):
        for item in outcome:
            if isinstance(item, torch.Tensor) and item.requires_grad:
                return item if item.dim() == 0 else item.float().sum()
    return None


def _result(counter: OperationCounter, seconds: float) -> OperationCount:
    missed = sum(counter.uncounted.values())
    return OperationCount(
        flops=sum(counter.model.values()),
        attention_flops=sum(counter.attention.values()),
        attention=dict(counter.attention),
        by_dtype=dict(counter.by_dtype),
        by_operation=dict(counter.model),
        recompute_flops=counter.recomputed,
        uncounted=tuple(sorted(counter.uncounted)),
        coverage=counter.calls / (counter.calls + missed) if counter.calls + missed else 1.0,
        assumptions=tuple(counter.assumptions),
        seconds=seconds,
    )
