"""A copy of a module on which a training step can be rehearsed: fake tensors, no trainer, no hooks, no compiler.

The live module must come out untouched, so nothing that belongs to it is reachable from the copy, except large plain
data (data sets, arrays), which is shared because copying it would cost memory and no training step writes to it.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._pytree import tree_map_only

from effprof.workload.batch import find_tokens
from effprof.workload.counter import CountFailed, OperationCounter
from effprof.workload.known_values import remember, remember_ones

_LARGE_ITEMS = 10_000
_LARGE_BYTES = 1 << 20
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def copy_as_fake(module: nn.Module, mode: FakeTensorMode, counter: OperationCounter) -> nn.Module:
    """A deep copy of `module` whose tensors hold no memory; raises CountFailed where it cannot be copied."""
    _refuse_sharded(module)
    memo: dict[int, Any] = {}
    for owner in _trainers(module):
        memo[id(owner)] = None
    _share_large_data(module, memo)
    try:
        with FakeCopyMode(mode):
            _replace_uncopyable(module, memo, counter)
            for part in module.modules():
                if hasattr(part, "_orig_mod") and id(part) not in memo:  # torch.compile's wrapper
                    memo[id(part)] = copy.deepcopy(part._orig_mod, memo)
            twin: nn.Module = copy.deepcopy(module, memo)
    except Exception as error:
        raise CountFailed(f"the module could not be copied: {_first_line(error)}") from error
    for part in twin.modules():
        _remove_hooks(part)
        if _comes_from(part, "torchmetrics"):
            _silence_metric(part)
    for part in module.modules():
        _detach_from_trainer(part, memo.get(id(part)), counter)
        _remember_values(part, memo)
    return twin


def fake_batch(batch: Any, mode: FakeTensorMode) -> Any:
    """`batch` with every tensor replaced by a fake of the same shape, dtype and device; a mask counts as all ones."""
    tokens = find_tokens(batch)
    mask = None if tokens is None else tokens.attention_mask

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        fake = mode.from_tensor(tensor.detach(), static_shapes=True)
        if tensor is mask:  # padding is the batch's own; FLOPs are related to full sequences
            remember_ones(fake)
        return fake

    return tree_map_only(torch.Tensor, replace, batch)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Put every random generator that a training step may draw from back to where it was."""
    numpy = sys.modules.get("numpy")
    host, python = torch.get_rng_state(), random.getstate()
    array = numpy.random.get_state() if numpy is not None else None
    uses_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    device = torch.cuda.get_rng_state_all() if uses_cuda else None
    try:
        yield
    finally:
        torch.set_rng_state(host)
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(array)
        if device is not None:
            torch.cuda.set_rng_state_all(device)


def _refuse_sharded(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        kind = type(parameter).__name__
        if kind == "DTensor" or type(parameter.data).__name__ == "DTensor" or hasattr(parameter, "ds_id"):
            raise CountFailed(f"the parameters are sharded over processes ({name})")
    for part in module.modules():
        if type(part).__name__ == "FullyShardedDataParallel":
            raise CountFailed("the parameters are sharded over processes (FullyShardedDataParallel)")


def _trainers(module: nn.Module) -> Iterator[Any]:
    for part in module.modules():
        for name in ("_trainer", "_fabric"):
            owner = part.__dict__.get(name)
            if owner is not None:
                yield owner


def _share_large_data(module: nn.Module, memo: dict[int, Any]) -> None:
    """Enter large plain attributes into deepcopy's memo, containers as shallow copies."""
    for part in module.modules():
        for value in list(vars(part).values()):
            is_large_array = not isinstance(value, torch.Tensor) and getattr(value, "nbytes", 0) > _LARGE_BYTES
            if is_large_array or _is_dataset(value):
                memo[id(value)] = value
            elif isinstance(value, (list, dict, set)) and len(value) > _LARGE_ITEMS:
                memo[id(value)] = copy.copy(value)


def _replace_uncopyable(module: nn.Module, memo: dict[int, Any], counter: OperationCounter) -> None:
    """Enter a stand-in for every attribute that cannot be copied (locks, files, generators, handles)."""
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if name in _MODULE_STATE or id(value) in memo or _is_simple(value):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                memo[id(value)] = _StandIn(name, None, counter)


_MODULE_STATE = frozenset(vars(nn.Module()))


def _is_simple(value: Any) -> bool:
    if isinstance(value, (*_PLAIN, torch.Tensor, nn.Module)) or callable(value):
        return True
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(isinstance(item, _PLAIN) for item in value)
    return isinstance(value, dict) and all(isinstance(item, _PLAIN) for item in value.values())


def _is_dataset(value: Any) -> bool:
    return _comes_from(value, "torch.utils.data") or _comes_from(value, "datasets")


def _comes_from(value: Any, package: str) -> bool:
    return any(f"{kind.__module__}.".startswith(f"{package}.") for kind in type(value).__mro__)


def _remove_hooks(part: nn.Module) -> None:
    """Drop hooks: they belong to whoever watches the live module. Those of torch.nn.utils compute a weight and stay."""
    for name in _HOOKS:
        hooks = part.__dict__.get(name)
        if hooks:
            kept = {key: hook for key, hook in hooks.items() if type(hook).__module__.startswith("torch.nn.utils")}
            part.__dict__[name] = type(hooks)(kept)


def _silence_metric(part: nn.Module) -> None:
    """Metrics look at values and cost no model FLOPs: on the copy they answer zero."""

    def answer(*_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(())

    for name in ("forward", "update", "compute"):
        part.__dict__[name] = answer


def _remember_values(live: nn.Module, memo: dict[int, Any]) -> None:
    """Let buffers, and tensors kept as plain attributes, be read where code asks for their values (masks, mostly)."""
    for value in [*live.buffers(recurse=False), *vars(live).values()]:
        if isinstance(value, torch.Tensor) and isinstance(memo.get(id(value)), torch.Tensor):
            remember(memo[id(value)], value)


def _detach_from_trainer(live: nn.Module, twin: Any, counter: OperationCounter) -> None:
    """Give the copy of a LightningModule stand-ins for all that it asks its trainer for."""
    if twin is None or "_trainer" not in vars(twin) or not hasattr(twin, "automatic_optimization"):
        return
    trainer = live.__dict__.get("_trainer")
    twin.__dict__["_trainer"] = _StandIn("trainer", trainer, counter) if trainer is not None else None
    twin.__dict__["_fabric"] = None
    twin.__dict__.update(_trainer_methods(trainer, counter))


def _trainer_methods(trainer: Any, counter: OperationCounter) -> dict[str, Callable[..., Any]]:
    optimizers = [_StandInOptimizer(each) for each in getattr(trainer, "optimizers", None) or [None]]
    scheduler = _StandIn("scheduler", None, counter)
    methods = dict.fromkeys(("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer"), _nothing)
    return {
        **methods,
        "clip_gradients": _nothing,
        "optimizers": lambda *_, **__: optimizers[0] if len(optimizers) == 1 else optimizers,
        "lr_schedulers": lambda *_, **__: scheduler,
        "manual_backward": _run_backward,
        "all_gather": lambda data, *_, **__: data,
    }


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _run_backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]


class _StandIn:
    """Answers for an object that the copy must not reach: plain values are read through, calls do nothing."""

    def __init__(self, name: str, original: Any, counter: OperationCounter) -> None:
        self.__dict__.update(_name=name, _original=original, _counter=counter)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._original, name, None)
        if isinstance(value, _PLAIN) and self._original is not None and hasattr(self._original, name):
            return value
        return _StandIn(f"{self._name}.{name}", value, self._counter)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __call__(self, *_: Any, **__: Any) -> None:
        self._counter.assume(f"{self._name}() was not called")

    def __bool__(self) -> bool:
        return self._original is not None

    def __enter__(self) -> _StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _StandInOptimizer:
    """An optimizer that steps nowhere."""

    def __init__(self, original: Any) -> None:
        groups = getattr(original, "param_groups", None) or [{"lr": 0.0}]
        self.param_groups = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        self.state: Mapping[Any, Any] = {}

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        return closure() if closure is not None else None

    def zero_grad(self, *_: Any, **__: Any) -> None:
        return None

    @contextmanager
    def toggle_model(self, *_: Any, **__: Any) -> Iterator[None]:
        yield

    @property
    def optimizer(self) -> _StandInOptimizer:
        return self


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # a message that opens with a module's repr says what happened at its end
    line = lines[-1] if len(lines) > 1 and lines[0].endswith("(") else lines[0]
    return f"{type(error).__name__}: {line[:160]}"
