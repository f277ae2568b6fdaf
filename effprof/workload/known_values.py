"""Values of fake tensors that do not depend on parameters or data, worked out only when someone asks.

A causal mask built with `torch.tril(torch.ones(T, T))` or kept in a buffer says which pairs attend. Fake tensors hold
no values, so each such tensor remembers the call that made it; `value_of` replays the calls on real tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

_NAME = "_effprof_known"
_LARGEST = 1 << 26  # elements; a mask of 8,192 × 8,192
_FACTORIES = frozenset({torch.ones, torch.zeros, torch.full, torch.arange, torch.eye, torch.tensor, torch.linspace})
_FACTORIES |= {torch.tril_indices, torch.triu_indices, torch.scalar_tensor, torch.zeros_like, torch.ones_like}
_LIKE = frozenset({torch.zeros_like, torch.ones_like, torch.full_like, torch.Tensor.new_zeros, torch.Tensor.new_ones})
_DEVICES = frozenset({"cuda", "cpu", "xpu", "mps", "meta"})
_READING = frozenset({"__invert__", "__index__", "__init__", "__int__", "__iter__"})
_RANDOM = ("rand", "dropout", "bernoulli", "multinomial", "normal", "empty")


class _Call:
    """How a tensor came about: a function and its arguments, in which fake tensors stand for their own calls.

    `version` counts the writes to the tensor's storage up to this call; a later write by another view outdates it.
    """

    __slots__ = ("args", "func", "kwargs", "result", "version")

    def __init__(
        self, func: Callable[..., Any] | None, args: Any, kwargs: Any, version: int = 0, result: Any = None
    ) -> None:
        self.func, self.args, self.kwargs, self.version, self.result = func, args, kwargs, version, result


class KnownValues:
    """Follows which fake tensors have known values while a function mode passes their calls by."""

    def __init__(self) -> None:
        self._writes: Counter[int] = Counter()

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Note that `out` came from `func(*args, **kwargs)`, if that makes its value known."""
        name = getattr(func, "__name__", "")
        if _writes_in_place(name) or "out" in kwargs:
            self._follow_write(func, args, kwargs)
        elif isinstance(out, torch.Tensor) and (func in _LIKE or self._makes_known(func, name, args, kwargs)):
            setattr(out, _NAME, _Call(func, args, dict(kwargs), self._writes[_storage(out)]))

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Whether `value_of` could answer for `tensor`."""
        call = getattr(tensor, _NAME, None)
        return call is not None and call.version == self._writes[_storage(tensor)]

    def value_of(self, tensor: Any) -> torch.Tensor | None:
        """The real value of a fake `tensor`, on the host; None where it is not known or too large."""
        if not isinstance(tensor, torch.Tensor) or not self.is_known(tensor):
            return None
        try:
            with outside_modes():
                return _replay(tensor)
        except Exception:  # whatever cannot be replayed is simply not known
            return None

    def _makes_known(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if func in _FACTORIES:
            return True
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        return bool(tensors) and all(map(self.is_known, tensors)) and not name.startswith(_RANDOM)

    def _follow_write(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        target = kwargs.get("out", args[0] if args else None)
        if not isinstance(target, torch.Tensor):
            return
        stays_known = "out" not in kwargs and self._makes_known(func, func.__name__, args, kwargs)
        self._writes[_storage(target)] += 1
        if stays_known:
            before = getattr(target, _NAME)
            call = _Call(func, (before, *args[1:]), dict(kwargs), self._writes[_storage(target)])
            setattr(target, _NAME, call)


@contextmanager
def outside_modes() -> Iterator[None]:
    """Compute on real tensors although fake tensors and counting are on."""
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
        yield


def remember(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """State that the fake `tensor` has the value of the real `value`, which is read only when asked for."""
    setattr(tensor, _NAME, _Call(None, (), {}, result=value))


def remember_ones(tensor: torch.Tensor) -> None:
    """State that the fake `tensor` is all ones."""
    setattr(tensor, _NAME, _Call(torch.ones, (tuple(tensor.shape),), {"dtype": tensor.dtype}))


def _replay(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.numel() > _LARGEST:
        raise ValueError("too large")
    return _run(getattr(tensor, _NAME), tensor)


def _run(call: _Call, like: torch.Tensor) -> torch.Tensor:
    """The value that `call` makes; `like` is the fake tensor it belongs to."""
    if call.func is None:
        value: torch.Tensor = call.result.detach().cpu()
        return value
    if call.result is None:
        if call.func in _LIKE:  # the tensor that gives the shape need not be known
            call.result = torch.full(tuple(like.shape), _fill_of(call), dtype=like.dtype)
        elif call.args and isinstance(call.args[0], _Call):  # written in place: the value before stays what it was
            before = _run(call.args[0], like).clone()
            call.func(before, *tree_map(_real, call.args[1:]), **tree_map(_real, call.kwargs))
            call.result = before
        else:
            call.result = call.func(*tree_map(_real, call.args), **tree_map(_real, call.kwargs))
    result: torch.Tensor = call.result
    return result


def _fill_of(call: _Call) -> Any:
    if call.func is torch.full_like:
        return call.args[1] if len(call.args) > 1 else call.kwargs["fill_value"]
    return 1 if "ones" in getattr(call.func, "__name__", "") else 0


def _real(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return _replay(leaf)
    if isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf.split(":")[0] in _DEVICES):
        return torch.device("cpu")
    return leaf


def _writes_in_place(name: str) -> bool:
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in _READING)
    return name.endswith("_")


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
