"""Lets code that sorts tokens by expert run on fake tensors: every expert is taken to get an even share.

Which tokens an expert gets depends on data, how many all experts get together does not: tokens × experts per token. So
the choice of experts (`topk`, `max`) is followed to the places where its size is asked for (`nonzero`, masks), and the
answer is an even share, rounded so that the shares of all experts add up. The FLOPs of the sum are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import floor
from typing import Any

import torch

_TAG = "_effprof_route"
ASSUMPTION = "tokens were shared evenly among experts (their sum does not depend on it)"
_SAME_ELEMENTS = frozenset(
    {
        "aten::view",
        "aten::_unsafe_view",
        "aten::reshape",
        "aten::permute",
        "aten::transpose",
        "aten::t",
        "aten::unsqueeze",
        "aten::squeeze",
        "aten::expand",
        "aten::clone",
        "aten::detach",
        "aten::_to_copy",
        "aten::alias",
        "aten::unbind",
        "aten::split",
        "aten::slice",
    }
)
_CHOICES = {"aten::topk": 1, "aten::max": 1, "aten::sort": 1, "aten::argmax": None}
_COMPARISONS = frozenset({"aten::gt", "aten::ne", "aten::ge"})


@dataclass
class _Choice:
    """One router's choice among `experts`; counts the experts whose number is not known."""

    experts: int
    asked: int = 0


@dataclass(frozen=True)
class Route:
    """What a tensor says about a choice of experts.

    `kind`: "index" (chosen experts), "hit" (true where one expert is chosen), "count" (tokens per expert), "sure"
    (true, however tokens are routed). `share` of the elements of a "hit" are true; `expert` is its expert, if known.
    """

    kind: str
    choice: _Choice
    share: Fraction = Fraction(1)
    expert: int | None = field(default=None)


class EvenRouting:
    """Follows choices of experts through the operations below autograd."""

    def __init__(self) -> None:
        self.was_used = False

    def follow(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Note what operation `name` makes of a choice of experts among its arguments."""
        if name in _CHOICES:
            self._start(name, args, kwargs, out)
            return
        tagged = next((each for each in args if getattr(each, _TAG, None) is not None), None)
        if tagged is None:
            return
        route: Route = getattr(tagged, _TAG)
        found = _derive(name, route, tagged, args, kwargs)
        if found is not None:
            for tensor in out if isinstance(out, (list, tuple)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    setattr(tensor, _TAG, found)

    def size_of(self, tensor: torch.Tensor) -> int | None:
        """How many elements of `tensor` are true; None where that is no matter of routing."""
        route: Route | None = getattr(tensor, _TAG, None)
        if route is None or route.kind not in ("hit", "sure"):
            return None
        self.was_used = True
        if route.kind == "sure":
            return tensor.numel()
        expert = route.expert
        if expert is None:
            expert, route.choice.asked = route.choice.asked, route.choice.asked + 1
            setattr(tensor, _TAG, replace(route, expert=expert))
        expert %= route.choice.experts
        whole = tensor.numel() * route.share
        return floor((expert + 1) * whole) - floor(expert * whole)

    def nonzero(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """`tensor.nonzero()` with an even share of rows; None where the size is no matter of routing."""
        size = self.size_of(tensor)
        return None if size is None else tensor.new_empty((size, tensor.dim()), dtype=torch.int64)

    def without_masks(self, indices: Any) -> list[Any] | None:
        """`indices` of an indexing operation with masks of chosen tokens turned into rows; None if there is none."""
        if not any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in indices or ()):
            return None
        plain: list[Any] = []
        for each in indices:
            if isinstance(each, torch.Tensor) and each.dtype == torch.bool:
                rows = self.nonzero(each)
                if rows is None:
                    return None
                plain.extend(rows.unbind(1))
            else:
                plain.append(each)
        return plain

    def scalar(self, tensor: torch.Tensor) -> bool | int | None:
        """The answer to `.item()` on a tensor that is a matter of routing: some tokens, everywhere."""
        route: Route | None = getattr(tensor, _TAG, None)
        if route is None or route.kind == "index":
            return None
        self.was_used = True
        return tensor.dtype == torch.bool or 1

    def bincount(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
        """`torch.bincount` of chosen experts: one count per expert."""
        route: Route | None = getattr(args[0], _TAG, None)
        if route is None or route.kind != "index":
            return None
        self.was_used = True
        size = max(route.choice.experts, int(kwargs.get("minlength", args[2] if len(args) > 2 else 0)))
        counts: torch.Tensor = args[0].new_empty((size,), dtype=torch.int64)
        setattr(counts, _TAG, replace(route, kind="count"))
        return counts

    def _start(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        scores, position = args[0], _CHOICES[name]
        if not scores.is_floating_point() or scores.dim() < 2:
            return
        chosen = out if position is None else out[position] if isinstance(out, (tuple, list)) else None
        if isinstance(chosen, torch.Tensor) and chosen.dtype == torch.int64:
            setattr(chosen, _TAG, Route("index", _Choice(int(scores.shape[-1]))))


def _derive(
    name: str, route: Route, tagged: torch.Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Route | None:
    if name in _SAME_ELEMENTS:
        return route
    if route.kind == "index":
        if name == "aten::eq":
            expert = args[1] if isinstance(args[1], int) else None
            return Route("hit", route.choice, Fraction(1, route.choice.experts), expert)
        if name in ("aten::scatter", "aten::scatter_"):  # one-hot
            return Route("hit", route.choice, Fraction(1, route.choice.experts))
        return route if name in ("aten::select", "aten::index") else None
    if name in ("aten::select", "aten::index") and tagged is args[0]:
        expert = args[2] if name == "aten::select" and isinstance(args[2], int) else None
        return replace(route, expert=expert) if route.kind == "hit" else route
    if route.kind == "hit" and name == "aten::any":
        if len(args) < 2 and "dim" not in kwargs:
            return replace(route, kind="sure")
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        return replace(route, share=min(Fraction(1), route.share * int(tagged.shape[dim])))
    if route.kind == "hit" and name == "aten::sum":
        return replace(route, kind="count")
    if route.kind == "count" and name in _COMPARISONS:
        return replace(route, kind="sure")
    return None
