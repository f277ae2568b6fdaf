"""Makes docs/api.md from the docstrings and signatures of what effprof's users import.

Run as `python -m effprof.cli.api_reference > docs/api.md`. Sources are parsed, never imported: no framework is needed.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from effprof.errors import EffprofError

Definition = ast.FunctionDef | ast.ClassDef
WIDTH = 110

_INTRO = """# Python API

Made from the docstrings by `python -m effprof.cli.api_reference`; a test compares the two. What is not listed here is
the project's own and may change. Numbers carry their unit in the name: `_s` seconds, `_ns` nanoseconds, `_bytes` bytes,
`_w` watts. What a person has to put right raises [`EffprofError`](#effproferrorseffproferror), with what to do."""


@dataclass(frozen=True)
class Entry:
    """A name that users import.

    Attributes:
        path: as it is imported.
        home: the module that defines it, where that differs.
        members: of a class, the methods and properties to show.
    """

    path: str
    home: str = ""
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def module(self) -> str:
        return self.home or self.path.rpartition(".")[0]


@dataclass(frozen=True)
class Group:
    """A chapter of the reference."""

    title: str
    text: str
    entries: tuple[Entry, ...]


GROUPS = (
    Group(
        "Measuring a training",
        "The callbacks take the same settings as `StepProfiler`. Which one fits: [integrations.md](integrations.md).",
        (
            Entry("effprof.callbacks.EfficiencyCallback", "effprof.callbacks.lightning", ("run_dir", "live")),
            Entry("effprof.callbacks.huggingface.EfficiencyCallback", members=("run_dir",)),
            Entry("effprof.callbacks.fabric.EfficiencyCallback", members=("run_dir", "watch", "close")),
            Entry("effprof.callbacks.attach", "effprof.callbacks.hooks"),
            Entry("effprof.callbacks.accelerate.attach"),
            Entry("effprof.callbacks.deepspeed.attach"),
            Entry("effprof.callbacks.hooks.HookedLoop", members=("run_dir", "watch", "phase", "end_step", "close")),
            Entry(
                "effprof.StepProfiler",
                "effprof.measure.profiler",
                (
                    "watch",
                    "step",
                    "phase",
                    "close",
                    "run_dir",
                    "record_loss",
                    "open",
                    "count_batch",
                    "end_micro_batch",
                    "end_step",
                    "live",
                ),
            ),
            Entry("effprof.measure.live.Live"),
        ),
    ),
    Group(
        "Analysing runs",
        "Needs no torch. `Analysis`, `Comparison` and `Check` are described key by key in [schema.md](schema.md).",
        (
            Entry("effprof.runlog.reader.open_run"),
            Entry("effprof.runlog.reader.find_runs"),
            Entry("effprof.analysis.analyze.analyze"),
            Entry("effprof.analysis.analyze.examine"),
            Entry("effprof.analysis.kernel.analyze_traces"),
            Entry("effprof.analysis.foreign.examine_foreign"),
            Entry("effprof.analysis.foreign.Given", "effprof.analysis.foreign_given"),
            Entry("effprof.analysis.compare.compare"),
            Entry("effprof.analysis.check.check"),
            Entry("effprof.reports.choose"),
            Entry("effprof.reports.Report", members=("render", "render_comparison")),
        ),
    ),
    Group(
        "Recommending and verifying",
        "How they are used: [recommendations.md](recommendations.md), [verification.md](verification.md).",
        (
            Entry("effprof.advise.recommend.recommend"),
            Entry("effprof.advise.verification.verify"),
            Entry("effprof.advise.segments.SegmentResult"),
        ),
    ),
    Group(
        "FLOPs and peaks",
        "What `effprof flops` and `effprof device` are made of. Conventions: [mfu-conventions.md](mfu-conventions.md).",
        (
            Entry("effprof.workload.architecture.from_hf_config"),
            Entry("effprof.workload.flops.report"),
            Entry("effprof.workload.flops.FlopsReport"),
            Entry("effprof.workload.flops.flops_model"),
            Entry("effprof.workload.model.FlopsModel", members=("evaluate",)),
            Entry("effprof.hardware.catalog.lookup"),
            Entry("effprof.hardware.catalog.Accelerator"),
        ),
    ),
    Group(
        "Extending",
        "A package of one's own registers in the entry point group `effprof.rules`, `effprof.importers` or "
        "`effprof.probes`.",
        (
            Entry("effprof.advise.rule.rule"),
            Entry("effprof.advise.rule.Match"),
            Entry("effprof.advise.rule.Threshold", members=("saw",)),
            Entry("effprof.advise.rule.Missing"),
            Entry("effprof.advise.rule.NotApplicable"),
            Entry("effprof.runlog.importers.table.LineFormat"),
        ),
    ),
    Group("Errors", "", (Entry("effprof.errors.EffprofError"),)),
)


@cache
def _definitions(module: str) -> dict[str, Definition]:
    """Classes and functions of a module, by name."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise EffprofError(f"no module {module}", "correct GROUPS in effprof/cli/api_reference.py")
    with open(spec.origin, encoding="utf-8") as source:
        body = ast.parse(source.read()).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)} | {
        "": ast.ClassDef(name="", bases=[], keywords=[], body=body, decorator_list=[])
    }


def find(module: str, name: str) -> Definition:
    """The definition of a public name.

    Raises:
        EffprofError: the module does not define it.
    """
    try:
        return _definitions(module)[name]
    except KeyError:
        raise EffprofError(f"{module} defines no {name}", "correct GROUPS in effprof/cli/api_reference.py") from None


def _bases(module: str, node: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
    """A class and those of its bases that are effprof's own, nearest first."""
    yield module, node
    homes = {
        alias.asname or alias.name: each.module
        for each in _definitions(module)[""].body
        if isinstance(each, ast.ImportFrom) and each.module
        for alias in each.names
    }
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else ""
        home = module if name in _definitions(module) else homes.get(name, "")
        if name and home.startswith("effprof."):
            found = find(home, name)
            assert isinstance(found, ast.ClassDef)
            yield from _bases(home, found)


def _member(module: str, node: ast.ClassDef, name: str) -> ast.FunctionDef:
    for _, each in _bases(module, node):
        for found in each.body:
            if isinstance(found, ast.FunctionDef) and found.name == name:
                return found
    raise EffprofError(f"{module}.{node.name} has no {name}", "correct GROUPS in effprof/cli/api_reference.py")


def _call(name: str, node: ast.FunctionDef, *, is_method: bool) -> str:
    """How a function is called: its signature without `self`, one parameter a line where it is long."""
    words = list(_parameters(node.args))[int(is_method) :]
    returned = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({', '.join(words)}){returned}"
    return line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){returned}"


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    yield from map(_parameter, positional, defaults)
    if arguments.vararg:
        yield f"*{_parameter(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    yield from map(_parameter, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        yield f"**{_parameter(arguments.kwarg)}"


def _parameter(argument: ast.arg, default: ast.expr | None = None) -> str:
    text = ast.unparse(argument)
    return text if default is None else f"{text} = {ast.unparse(default)}"


def _fields(node: ast.ClassDef) -> str:
    """A data class's constructor, from its annotated fields."""
    lines = [f"    {ast.unparse(each)}," for each in node.body if isinstance(each, ast.AnnAssign) and each.simple == 1]
    return f"{node.name}(\n" + "\n".join(lines) + "\n)" if lines else f"{node.name}()"


def _docstring(node: Definition) -> str:
    """A docstring as Markdown: its Google-style sections as lists, its literal blocks as code."""
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    text = re.sub(
        r"(?:^|(?<=\n))([^\n]*?)::\n\n((?:(?: {4}[^\n]*)?\n)*(?: {4}[^\n]*)?)",
        lambda found: f"{found[1]}{':' if found[1] else ''}\n\n{_code(found[2])}\n",
        text + "\n",
    )
    return re.sub(r"(```.*?```)|\n{3,}", lambda found: found[1] or "\n\n", _sections(text), flags=re.DOTALL).strip()


def _code(block: str) -> str:
    return f"```python\n{inspect.cleandoc(block).strip()}\n```\n"


def _sections(text: str) -> str:
    """`Args:` and its kin, indented entries below, as a heading and a list."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line):
            lines += [f"*{line[:-1]}*" if line != "Args:" else "*Arguments*", ""]
            inside = True
        elif inside and (entry := re.fullmatch(r"    (\*{0,2}[\w.]+(?:, [\w.]+)*): (.*)", line)):
            lines.append(f"- `{entry[1].replace(', ', '`, `')}`: {entry[2]}")
        elif inside and line.startswith("    "):
            lines.append(("  " if line.startswith("        ") else "") + line.strip())
        else:
            inside = inside and not line
            lines.append(line)
    return "\n".join(lines)


def _entry(entry: Entry) -> str:
    node = find(entry.module, entry.name)
    parts = [f"### `{entry.path}`", f"```\n{_signature(entry, node)}\n```", _docstring(node)]
    for name in entry.members:
        assert isinstance(node, ast.ClassDef)
        member = _member(entry.module, node, name)
        is_property = any(ast.unparse(each) == "property" for each in member.decorator_list)
        shown = f".{name}" if is_property else _call(f".{name}", member, is_method=True)
        parts += [f"```\n{shown}\n```", _docstring(member)]
    return "\n\n".join(part for part in parts if part)


def _signature(entry: Entry, node: Definition) -> str:
    if isinstance(node, ast.FunctionDef):
        return _call(entry.name, node, is_method=False)
    try:
        return _call(entry.name, _member(entry.module, node, "__init__"), is_method=True)
    except EffprofError:
        return _fields(node)


def _group(group: Group) -> str:
    parts = [f"## {group.title}", group.text, *(_entry(entry) for entry in group.entries)]
    return "\n\n".join(part for part in parts if part)


def render() -> str:
    """The text of docs/api.md."""
    return "\n\n".join([_INTRO, *(_group(group) for group in GROUPS)]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
