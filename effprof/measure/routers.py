"""Finds the routers of a mixture-of-experts model and reads from their outputs which experts the tokens go to.

A router is known by where it stands, not by its class: a child named `gate` or `router` beside `experts`, or a module
that is called a router or gate and says its `top_k` and number of experts. What it returns decides how it is read:

- expert numbers, alone or among other tensors (transformers 5: Mixtral, Qwen2-MoE, Qwen3-MoE, DeepSeek-V3, OLMoE,
  GPT-OSS and the many that follow them; DeepSeek-V3 and GPT-OSS in transformers 4 too);
- one logit per expert (a plain linear gate, as transformers 4 has it): the block's own `route_tokens_to_experts`
  where there is one, else the top k logits;
- a 0/1 dispatch mask with a capacity (Switch Transformers): what it leaves out is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from effprof.errors import EffprofError

# (module, its positional inputs, its output) → expert numbers (tokens, k)
Reader = Callable[[nn.Module, tuple[Any, ...], Any], torch.Tensor]

_CHILD_NAMES = ("gate", "router")
_CLASS_NAME = re.compile(r"(Router|Gate|Gating)$")
_WIDTH_NAMES = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "out_features")
_TOP_K_NAMES = ("top_k", "num_experts_per_tok", "moe_top_k", "moe_topk")
# What wrappers put into a module's path.
_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)(\.|$)")


@dataclass(frozen=True)
class Router:
    """A module that routes.

    Attributes:
        name: path of the routed layer (of the module itself where the user named it), wrappers left out.
        module: what a forward hook goes on.
        experts: number of experts, None where only the numbers themselves tell.
        read: expert numbers (tokens, k), or a dispatch mask (tokens, experts) where `is_mask`.
        is_mask: whether `read` gives 0/1 per expert.
    """

    name: str
    module: nn.Module
    experts: int | None
    read: Reader
    is_mask: bool = False


def find_routers(model: nn.Module, named: Mapping[str, Reader | str] | None = None) -> list[Router]:
    """The routers of `model`, in the order of its modules; none for a dense model.

    Args:
        named: glob of module paths → how to read that router: "logits:k" (top k of the output's last dimension),
            "indices" (the output is the expert numbers), or a function (module, inputs, output) → expert numbers
            (tokens, k). Overrules what would be found by itself.

    Raises:
        EffprofError: a glob that matches no module, or a word that is none of the above.
    """
    readers = {pattern: _reader_of(word) for pattern, word in (named or {}).items()}
    unmatched = set(readers)
    found: dict[int, Router] = {}
    for path, module in model.named_modules():
        name = plain_path(path)
        pattern = next((pattern for pattern in readers if fnmatchcase(name, pattern) or path == pattern), None)
        if pattern is not None:
            unmatched.discard(pattern)
            found[id(module)] = Router(name, module, _width_of(module), readers[pattern])
    if unmatched:
        raise EffprofError(
            f"routers= matches no module: {', '.join(sorted(unmatched))}",
            "give the router's path as in model.named_modules(), * for any part of it",
        )
    for router in _find_by_themselves(model):
        found.setdefault(id(router.module), router)
    order = {id(module): index for index, module in enumerate(model.modules())}
    return sorted(found.values(), key=lambda router: order[id(router.module)])


def plain_path(path: str) -> str:
    """A module's path without the parts that compilers and parallel wrappers add."""
    return _WRAPPERS.sub("", path).strip(".")


def _find_by_themselves(model: nn.Module) -> Iterator[Router]:
    for path, block in model.named_modules():
        children = dict(block.named_children())
        for child_name, child in children.items():
            stands_as_one = child_name in _CHILD_NAMES and "experts" in children
            is_called_one = _CLASS_NAME.search(type(child).__name__) and _first_number((child,), _TOP_K_NAMES)
            if not (stands_as_one or is_called_one):
                continue
            experts = _experts_of(child, block)
            if experts is not None and not _weighs_all(child, block):
                yield _make_router(plain_path(path) or child_name, child, block, experts)


def _weighs_all(router: nn.Module, block: nn.Module) -> bool:
    """Whether a linear gate gives every expert every token (a dense mixture): nothing says how many it chooses."""
    return type(router) is nn.Linear and _first_number(_owners(router, block), _TOP_K_NAMES) is None


def _owners(router: nn.Module, block: nn.Module) -> tuple[Any, ...]:
    return router, block, getattr(router, "config", None), getattr(block, "config", None)


def _experts_of(router: nn.Module, block: nn.Module) -> int | None:
    """Number of experts that `router` chooses from; None where it can't be one."""
    width = _width_of(router) or _first_number((block, getattr(block, "config", None)), _WIDTH_NAMES[:-1])
    experts = getattr(block, "experts", None)
    if isinstance(experts, (nn.ModuleList, nn.ModuleDict)) and width is not None and len(experts) > width:
        return None
    return width if width is not None and width > 1 else None


def _width_of(router: nn.Module) -> int | None:
    number = _first_number((router, getattr(router, "config", None)), _WIDTH_NAMES)
    if number is not None:
        return number
    weight = getattr(router, "weight", None)
    # a sharded weight is flat or holds a part of its rows: only a whole one tells
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None


def _make_router(name: str, router: nn.Module, block: nn.Module, experts: int) -> Router:
    top_k = _first_number(_owners(router, block), _TOP_K_NAMES)
    is_biased = any(hasattr(owner, "e_score_correction_bias") for owner in (router, block))
    is_mask = top_k is None and hasattr(router, "expert_capacity")

    def read(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> torch.Tensor:
        tensors = [output] if isinstance(output, torch.Tensor) else [t for t in output if isinstance(t, torch.Tensor)]
        for tensor in tensors:
            if tensor.dim() >= 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool:
                return tensor
        logits = next((tensor for tensor in tensors if tensor.shape[-1] == experts), None)
        if logits is None:
            raise ValueError(f"the router {name} returns neither expert numbers nor {experts} logits")
        logits = logits.detach().reshape(-1, experts)
        route = getattr(block, "route_tokens_to_experts", None)
        if route is not None:
            return read(module, inputs, route(logits.clone()))
        if top_k is None:
            raise ValueError(f"the router {name} does not say how many experts a token goes to")
        if is_biased:
            raise ValueError(f"the router {name} corrects its choice with a bias that its output does not show")
        return torch.topk(logits, top_k, dim=-1).indices

    return Router(name, router, experts, read, is_mask)


def _reader_of(word: Reader | str) -> Reader:
    if not isinstance(word, str):
        return word
    if word == "indices":
        return lambda module, inputs, output: output if isinstance(output, torch.Tensor) else output[0]
    kind, _, number = word.partition(":")
    if kind != "logits" or not number.isdigit() or int(number) < 1:
        raise EffprofError(f"routers= has {word!r}", 'give "logits:K", "indices" or a function')
    top_k = int(number)

    def read(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> torch.Tensor:
        logits = output if isinstance(output, torch.Tensor) else output[0]
        return torch.topk(logits.detach().reshape(-1, logits.shape[-1]), top_k, dim=-1).indices

    return read


def _first_number(owners: tuple[Any, ...], names: tuple[str, ...]) -> int | None:
    for owner in owners:
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
