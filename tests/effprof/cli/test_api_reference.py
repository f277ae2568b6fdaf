"""docs/api.md cannot lag behind the docstrings, and names nothing that cannot be imported."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from effprof.cli import api_reference
from effprof.cli.api_reference import GROUPS, Entry, find, render
from effprof.errors import EffprofError

ROOT = Path(__file__).parents[3]
ENTRIES = [entry for group in GROUPS for entry in group.entries]


def test_the_document_is_what_the_docstrings_say() -> None:
    text = render()
    assert text == render(), "a second rendering differs"
    assert (ROOT / "docs" / "api.md").read_text() == text, "run python -m effprof.cli.api_reference > docs/api.md"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.path)
def test_every_name_can_be_imported_as_shown(entry: Entry) -> None:
    module, _, name = entry.path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert found.__module__ == entry.module
    for member in entry.members:
        assert hasattr(found, member), member
    assert inspect.getdoc(found)


def test_signatures_are_those_that_python_sees() -> None:
    from effprof import StepProfiler

    shown = api_reference._signature(Entry("effprof.StepProfiler"), find("effprof.measure.profiler", "StepProfiler"))
    for name, parameter in inspect.signature(StepProfiler).parameters.items():
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        assert f"    {name}: {parameter.annotation}{default},\n" in shown


def test_a_name_that_is_gone_is_told() -> None:
    with pytest.raises(EffprofError, match=r"effprof\.errors defines no Gone"):
        find("effprof.errors", "Gone")
