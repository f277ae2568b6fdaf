"""`effprof verify`: does a change bring what it promises, here, in this training?"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from effprof.errors import EffprofError


def command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN] -- COMMAND...", help="The run, and the training command.")
    ] = None,
    finding: Annotated[str | None, typer.Option("--finding", metavar="ID", help="Finding of RUN to verify.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--change", metavar="NAME=VALUE", help="Or a change of your own; repeatable.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="At most this long: 90s, 5m, 1h.")] = "5m",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document (effprof.verify/1).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="GitHub-flavoured Markdown.")] = False,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE.")] = None,
) -> int:
    """Tries a change on your own training command.

    Runs COMMAND with and without the change in short, interleaved segments and compares speed and loss.

    Exit code 0: confirmed; 1: not confirmed, or the loss is damaged; 2: bad input.
    """
    from effprof.advise.verification import verify_command
    from effprof.advise.verified import keep
    from effprof.advise.wanted import changes_of, wanted_finding
    from effprof.cli.advice import read
    from effprof.cli.trials import INTERRUPTED, need_command, read_budget, read_changes, tell, trials_directory
    from effprof.reports import choose, trials
    from effprof.reports.emit import emit

    choose(as_json=as_json, as_markdown=as_markdown)
    seconds, given = read_budget(budget), list(words or ())
    if bool(finding) == bool(change):
        raise EffprofError("one of --finding and --change is needed", "effprof recommend RUN lists findings")
    run = given.pop(0) if given and (finding or os.path.isdir(given[0])) else None
    if finding and run is None:
        raise EffprofError("--finding needs the run it was found in", "effprof verify RUN --finding ID -- COMMAND")
    known = read(run) if run and finding else None
    wanted = wanted_finding(known.recommendations, finding) if known and finding else None
    changes = changes_of(wanted) if wanted else read_changes(change or ())
    training = need_command(given)
    path = known.path if known else run
    verification = verify_command(
        training,
        changes,
        trials_directory(f"verify-{finding or 'change'}", path),
        finding=wanted,
        budget_s=seconds,
        progress=tell,
    )
    if known and not verification.is_interrupted:
        devices = known.analysis.hardware.devices
        keep(verification, known.path, devices[0].name if devices else "")
    emit(trials.render_verification(verification, as_json=as_json, as_markdown=as_markdown), output)
    if verification.is_interrupted:
        return INTERRUPTED
    return 0 if verification.is_good else 1
