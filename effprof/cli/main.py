"""The `effprof` command: one visible list of commands, one place where errors become a line and an exit code."""

from __future__ import annotations

import importlib
import sys

import typer

from effprof import __version__
from effprof.errors import EffprofError

# One file per command: module in effprof.cli, holding a function `command` that typer turns into arguments.
COMMANDS = (
    "analyze",
    "check",
    "compare",
    "device",
    "flops",
    "recommend",
    "report",
    "rules",
    "run",
    "tune",
    "verify",
    "watch",
)

app = typer.Typer(
    name="effprof",
    help="How much of the accelerator a training run uses, and where the rest goes.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"effprof {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Options that come before the command."""


for _name in COMMANDS:
    app.command(_name)(importlib.import_module(f"effprof.cli.{_name}").command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 check failed, 2 bad input, 3 a defect in effprof)."""
    words = sys.argv[1:] if arguments is None else arguments
    own = words[: words.index("--")] if "--" in words else words  # what follows is a training's command
    debug = "--debug" in own
    # accepted anywhere on the line, because that is where people type it after an error
    words = [word for word in own if word != "--debug"] + words[len(own) :]
    try:
        code = app(args=words, standalone_mode=False)
        return int(code) if isinstance(code, int) else 0
    except EffprofError as error:
        if debug:
            raise
        typer.echo(f"effprof: {error}", err=True)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("effprof: interrupted", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        usage_code = getattr(error, "exit_code", None)
        if usage_code is not None and hasattr(error, "show"):  # click's usage errors, whichever click typer brings
            error.show()
            return int(usage_code)
        if debug:
            raise
        typer.echo(f"effprof: a defect in effprof: {type(error).__name__}: {error}", err=True)
        typer.echo("run again with --debug for the traceback, and please report it", err=True)
        return 3


if __name__ == "__main__":
    sys.exit(main())
