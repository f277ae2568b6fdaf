"""Knobs name arguments that exist: each call in a rule's knobs is held against the installed signature."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from effprof.advise.registry import all_rules

CALL = re.compile(r"\b(Trainer|DataLoader|ModelCheckpoint|TrainingArguments|EfficiencyCallback)\(")


def signatures() -> dict[str, Any]:
    import pytorch_lightning as pl
    import torch
    import transformers
    from pytorch_lightning.callbacks import ModelCheckpoint

    from effprof.callbacks.lightning import EfficiencyCallback

    return {
        "Trainer": pl.Trainer,
        "DataLoader": torch.utils.data.DataLoader,
        "ModelCheckpoint": ModelCheckpoint,
        "TrainingArguments": transformers.TrainingArguments,
        "EfficiencyCallback": EfficiencyCallback,
    }


def calls(text: str) -> Iterator[tuple[str, str]]:
    """Name and argument of every call of a known class in a snippet."""
    for match in CALL.finditer(text):
        depth, end = 0, match.end() - 1
        while end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
            if depth == 0:
                break
        source = re.sub(r"=\s*\.\.\.|\bPATH\b", "=None", text[match.start() : end]).replace("…", "None")
        try:
            tree = ast.parse(source, mode="eval").body
        except SyntaxError:
            names = re.findall(r"[(,]\s*(\w+)\s*=", source)
        else:
            names = [word.arg for word in tree.keywords if word.arg] if isinstance(tree, ast.Call) else []
        for name in names:
            yield match.group(1), name


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.id)
def test_arguments_exist(rule: Any) -> None:
    known = signatures()
    for framework, knob in rule.frameworks.items():
        for name, argument in calls(knob):
            parameters = inspect.signature(known[name].__init__).parameters
            assert argument in parameters, f"{rule.id}, {framework}: {name} has no argument {argument}"


def test_a_wrong_argument_is_seen() -> None:
    found = list(calls("Trainer(gradient_clip=1.0, plugins=[AsyncCheckpointIO()]); DataLoader(num_workers=N)"))
    assert found == [("Trainer", "gradient_clip"), ("Trainer", "plugins"), ("DataLoader", "num_workers")]
    assert "gradient_clip" not in inspect.signature(signatures()["Trainer"].__init__).parameters
