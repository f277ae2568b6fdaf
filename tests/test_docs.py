"""What the documentation tells people to type works: commands, snippets and links of every page.

A fenced block below a line `<!-- run -->` is executed, page by page from top to bottom in one directory that holds
`examples` and `tests`. The comment may add `exit=N` (expected exit code), `shows="TEXT"` (text of the output,
repeatable) and `add="--steps 12"` (words appended to each command, to shorten a training). All other blocks are checked
without running: Python parses and names arguments that exist, commands name options that exist.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from effprof.cli.api_reference import find
from effprof.cli.main import COMMANDS
from effprof.cli.reference import parameters_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(
    r"(?:^<!-- run(?P<options>.*?)-->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)(?P<target>[^)\s]*)\)")
GENERATED = {"api.md", "schema.md"}  # what these say is held against the code by tests of their own
MINUTES = 4  # for one page, on two busy cores
# name in a snippet: where its signature stands
CALLABLES = {
    "EfficiencyCallback": ("effprof.callbacks.lightning", "EfficiencyCallback"),
    "StepProfiler": ("effprof.measure.profiler", "StepProfiler"),
}


@dataclass
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    is_run: bool
    code: int = 0
    shows: list[str] = field(default_factory=list)
    add: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines after a prompt, continuation lines joined."""
        joined = self.text.replace("\\\n", "")
        return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        options = found["options"]
        block = Block(page.name, line, found["language"], found["text"], options is not None)
        for word in shlex.split(options or ""):
            name, _, value = word.partition("=")
            match name:
                case "exit":
                    block.code = int(value)
                case "shows":
                    block.shows.append(value)
                case "add":
                    block.add = value
                case _:
                    raise ValueError(f"{block.where}: unknown option {word}")
        yield block


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN_PAGES = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_a_page_can_be_followed(page: Path, tmp_path: Path) -> None:
    for name in ("examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for block in (block for block in blocks_of(page) if block.is_run):
        assert block.language in ("console", "python"), f"{block.where}: nothing that can be run"
        if block.language == "python":
            steps = [[sys.executable, "-c", block.text]]
        else:
            assert block.commands, f"{block.where}: no command"
            steps = [["bash", "-c", f"{command} {block.add}"] for command in block.commands]
        printed = ""
        for step in steps:
            done = subprocess.run(
                step, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60 * MINUTES, check=False
            )
            assert done.returncode == block.code, (
                f"{block.where}: {step[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            )
            printed += done.stdout + done.stderr
        for text in block.shows:
            assert text in printed, f"{block.where}: no {text!r} in\n{printed}"


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "python"], ids=lambda block: block.where)
def test_snippets_parse_and_name_arguments_that_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLABLES:
            known = _arguments(*CALLABLES[node.func.id])
            assert {word.arg for word in node.keywords if word.arg} <= known
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "effprof":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def _arguments(module: str, name: str) -> set[str]:
    node = find(module, name)
    assert isinstance(node, ast.ClassDef)
    start = next(each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
    return {each.arg for each in (*start.args.args, *start.args.kwonlyargs)}


@pytest.mark.parametrize(
    "block", [each for each in BLOCKS if each.commands and each.page not in GENERATED], ids=lambda block: block.where
)
def test_commands_name_options_that_exist(block: Block) -> None:
    for line in block.commands:
        words = shlex.split(line, comments=True)
        own, _, training = (" ".join(words)).partition(" -- ")
        for part in (own.split(), training.split()):
            unknown = set(_flags(part)) - _known_flags(part)
            assert not unknown, f"{line}: no {', '.join(sorted(unknown))}"


def _flags(words: list[str]) -> Iterator[str]:
    """The options that belong to effprof or to an example in a command line."""
    start = next((at for at, word in enumerate(words) if word == "effprof" or word.startswith("examples/")), len(words))
    yield from (word.partition("=")[0] for word in words[start:] if word.startswith("--"))


def _known_flags(words: list[str]) -> set[str]:
    script = next((word for word in words if word.startswith("examples/")), None)
    if script is not None:
        return set(re.findall(r'"(--[\w-]+)"', (ROOT / script).read_text()))
    if "effprof" not in words:
        return set()
    name = words[words.index("effprof") + 1]
    if name.startswith("--"):
        return {"--help", "--version", "--debug"}
    assert name in COMMANDS, f"no command {name}"
    command = importlib.import_module(f"effprof.cli.{name.replace('-', '_')}").command
    flags = {word for each in parameters_of(command) for word in re.findall(r"--[\w-]+", each.names)}
    return flags | {"--help", "--debug"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for found in LINK.finditer(re.sub(r"`[^`\n]*`", "", text)):
        target, _, anchor = found["target"].partition("#")
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page.name}: {found['target']}"
        if anchor and there.suffix == ".md":
            assert anchor in _anchors(there), f"{page.name}: {found['target']}"


def _anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
