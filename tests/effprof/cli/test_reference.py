"""docs/cli.md cannot lag behind the commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from effprof.cli.main import COMMANDS, main
from effprof.cli.reference import render

ROOT = Path(__file__).parents[3]


def test_the_document_is_what_the_commands_say() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == render(), "run python -m effprof.cli.reference > docs/cli.md"


@pytest.mark.parametrize("command", COMMANDS)
def test_it_names_the_options_that_help_prints(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--help"])
    printed = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)) - {"--help"}
    section = render().partition(f"## effprof {command}\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(?:-\w, )?(--[\w-]+)", section, re.MULTILINE)) == printed
