"""Makes docs/cli.md from the commands' own signatures, so that it cannot name an option that does not exist.

Run as `python -m effprof.cli.reference > docs/cli.md`. A command that is added to `main.COMMANDS` is in it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from effprof.cli.main import COMMANDS

_INTRO = """# Command line

Made from the commands by `python -m effprof.cli.reference`; a test compares the two. `effprof COMMAND --help` prints
the same. The keys of every `--json` document are in [schema.md](schema.md).

{list}

`effprof --version` prints the version. `--debug`, anywhere on the line, shows the traceback of an error."""

_EXIT_CODES = """## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | a check that was asked for failed: `check`, `verify`; `run` returns its command's own code |
| 2 | bad input, or an honest refusal: one or two lines on stderr say what was wrong and what to do |
| 3 | a defect in effprof; `--debug` shows the traceback |
| 130 | interrupted by Ctrl-C |

Warnings and notes go to stderr, so that standard output stays a document."""

_VARIABLES = {
    "EFFPROF_RUN_ID": "read by the training: name of the run's directory, the same for all its processes",
    "EFFPROF_CEILINGS": "file that keeps measured ceilings, else `~/.cache/effprof/ceilings.json`; `off` keeps none",
    "EFFPROF_CALIBRATION": "file that keeps what trials made of predictions, else "
    "`~/.local/state/effprof/calibration.jsonl`; `off` neither reads nor writes it",
    "EFFPROF_ATTACH": "set by `run` for the processes of its command",
    "EFFPROF_TRIAL": "set by `verify` and `tune` for the trainings they start: [verification.md](verification.md)",
}


@dataclass(frozen=True)
class Parameter:
    """One argument or option of a command."""

    names: str
    help: str
    default: str
    is_option: bool


def parameters_of(command: Callable[..., Any]) -> Iterator[Parameter]:
    """A command's arguments and options, in the order of its signature."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, info = _split(hints[name])
        if info is None or getattr(info, "hidden", False):
            continue
        is_required = parameter.default is inspect.Parameter.empty
        default = "required" if is_required else _shown(parameter.default)
        yield Parameter(_names(name, kind, info), info.help or "", default, isinstance(info, OptionInfo))


def _split(hint: Any) -> tuple[Any, ArgumentInfo | OptionInfo | None]:
    """Type and typer's description of an annotated parameter."""
    if get_origin(hint) is not Annotated:
        return hint, None
    kind, *extras = get_args(hint)
    return kind, next((extra for extra in extras if isinstance(extra, ArgumentInfo | OptionInfo)), None)


def _names(name: str, kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    value, is_list = _value(kind)
    if isinstance(info, ArgumentInfo):
        metavar = info.metavar or name.upper()
        return f"{metavar}..." if is_list and not metavar.endswith(("...", "]")) else metavar
    # under Annotated the first flag arrives where a default would
    first = (info.default,) if isinstance(info.default, str) else ()
    flags = ", ".join((*first, *(info.param_decls or ())) or (f"--{name.replace('_', '-')}",))
    placeholder = info.metavar or {bool: "", int: "N", float: "X"}.get(value, "TEXT")
    return f"{flags} {placeholder}".rstrip()


def _value(kind: Any) -> tuple[type, bool]:
    """Type of one value of a parameter, and whether several may be given."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(each for each in get_args(kind) if each is not types.NoneType)
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def _shown(default: Any) -> str:
    return "" if default is None or default is False or default == [] else f"`{default}`"


def usage(name: str, command: Callable[..., Any]) -> str:
    """The line that shows how a command is called."""
    found = list(parameters_of(command))
    required = [each.names for each in found if each.is_option and each.default == "required"]
    optional = ["[OPTIONS]"] if any(each.is_option and each.default != "required" for each in found) else []
    return " ".join([f"effprof {name}", *required, *optional, *(each.names for each in found if not each.is_option)])


def _summary(command: Callable[..., Any]) -> str:
    return (inspect.getdoc(command) or "").partition("\n\n")[0].replace("\n", " ")


def _section(name: str, command: Callable[..., Any]) -> str:
    found = list(parameters_of(command))
    parts = [f"## effprof {name}", inspect.getdoc(command) or "", f"```\n{usage(name, command)}\n```"]
    rows = [f"| `{_cell(each.names)}` | {_cell(each.help)} | {_cell(each.default)} |" for each in found]
    if rows:
        parts.append("\n".join(["| argument or option | meaning | default |", "|---|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def render() -> str:
    """The text of docs/cli.md."""
    commands = {name: importlib.import_module(f"effprof.cli.{name}").command for name in COMMANDS}
    listed = [f"| [`{name}`](#effprof-{name}) | {_cell(_summary(command))} |" for name, command in commands.items()]
    parts = [_INTRO.format(list="\n".join(["| command | what it does |", "|---|---|", *listed]))]
    parts += [_section(name, command) for name, command in commands.items()]
    variables = [f"| `{name}` | {meaning} |" for name, meaning in _VARIABLES.items()]
    environment = "\n".join(["## Environment variables\n", "| variable | meaning |", "|---|---|", *variables])
    return "\n\n".join([*parts, _EXIT_CODES, environment]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
