"""Every keyword of every knob is one that the library's own class takes."""

from __future__ import annotations

import ast
import importlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from effprof.advise.registry import all_rules

OWNERS = {
    "Trainer": "lightning.pytorch",
    "DDPStrategy": "lightning.pytorch.strategies",
    "FSDPStrategy": "lightning.pytorch.strategies",
    "ModelParallelStrategy": "lightning.pytorch.strategies",
    "DeepSpeedStrategy": "lightning.pytorch.strategies",
    "DataLoader": "torch.utils.data",
    "TrainingArguments": "transformers",
    "DataCollatorWithFlattening": "transformers",
    "DistributedDataParallel": "torch.nn.parallel",
    "fully_shard": "torch.distributed.fsdp",
    "GradScaler": "torch.amp",
    "autocast": "torch.amp",
    "AdamW": "torch.optim",
    "compile": "torch",
    "set_float32_matmul_precision": "torch",
    "set_detect_anomaly": "torch.autograd",
    "use_deterministic_algorithms": "torch",
    "save_on_cpu": "torch.autograd.graph",
    "checkpoint": "torch.utils.checkpoint",
}
PASSED_ON = {  # keywords that a class hands to another one through **kwargs
    "DDPStrategy": ("torch.nn.parallel", "DistributedDataParallel"),
    "FSDPStrategy": ("torch.distributed.fsdp", "FullyShardedDataParallel"),
}
PYTHON = ("lightning", "pytorch", "huggingface")


def _calls(snippet: str) -> Iterator[ast.Call]:
    """Calls of a snippet; of prose around code, those parts between semicolons that parse."""
    for part in [snippet, *snippet.replace("\n", ";").split(";")]:
        try:
            tree = ast.parse(part.strip())
        except SyntaxError:
            continue
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _unknown_keywords(call: ast.Call) -> list[str]:
    name = _name(call)
    if name not in OWNERS:
        return []
    known = _parameters(OWNERS[name], name)
    if name in PASSED_ON:
        known |= _parameters(*PASSED_ON[name])
    return [each.arg for each in call.keywords if each.arg and each.arg not in known]


def _parameters(module: str, name: str) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target: Any = getattr(importlib.import_module(module), name)
    return set(inspect.signature(target).parameters)


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.id)
def test_keywords_exist(rule: Any) -> None:
    """The listed knobs, and every string of the rule's module that holds a call of a known class."""
    pytest.importorskip("transformers")
    for framework, form in rule.frameworks.items():
        if framework in PYTHON:
            for call in _calls(form):
                assert _unknown_keywords(call) == [], f"{framework}: {form}"


@pytest.mark.parametrize("module", sorted({rule.find.__module__ for rule in all_rules()}))
def test_keywords_of_snippets_exist(module: str) -> None:
    """Snippets are made when a rule matches: their literals and f-strings are read from the source."""
    pytest.importorskip("transformers")
    for snippet in _strings(ast.parse(inspect.getsource(importlib.import_module(module)))):
        for call in _calls(snippet):
            assert _unknown_keywords(call) == [], f"{module}: {snippet}"


def _strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)


def test_an_unknown_keyword_is_found() -> None:
    call = next(_calls("Trainer(accumulate_gradient_batches=2)"))
    assert _unknown_keywords(call) == ["accumulate_gradient_batches"]
