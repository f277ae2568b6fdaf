"""`effprof tune`: the fastest configuration that this run's findings lead to, each change verified here."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND...", help="The training command, as you start it.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="At most this long: 90s, 10m, 1h.")] = "10m",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document (effprof.tune/1).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="GitHub-flavoured Markdown.")] = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Write the result as JSON to FILE too.")
    ] = None,
) -> int:
    """Keeps what makes your own training faster.

    Measures, recommends, verifies the best, keeps what is confirmed, and again until nothing above noise is left.
    """
    from effprof.advise.tune import tune
    from effprof.cli.trials import INTERRUPTED, need_command, read_budget, tell, trials_directory
    from effprof.reports import choose, trials
    from effprof.reports.emit import emit

    choose(as_json=as_json, as_markdown=as_markdown)
    seconds, training = read_budget(budget), need_command(words or ())
    tuned = tune(training, trials_directory("tune"), budget_s=seconds, progress=tell)
    if output is not None:
        emit(trials.render_tuned(tuned, as_json=True), output)
    emit(trials.render_tuned(tuned, as_json=as_json, as_markdown=as_markdown), None)
    return INTERRUPTED if tuned.is_interrupted else 0
