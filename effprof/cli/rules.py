"""`effprof rules`: every rule with its threshold, reason, lever, source and what trials here made of its promises."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    which: Annotated[
        str | None, typer.Argument(metavar="[AREA|ID]", help="Rules of one area, or one rule; all without.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document (effprof.rules/1).")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown.")] = False,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE.")] = None,
) -> int:
    """Lists the rules behind the recommendations.

    Each with its threshold, the reason for it, the setting it changes, its source, and what trials here made of it.
    """
    from effprof.advise.calibration import load_calibration
    from effprof.advise.listing import list_rules
    from effprof.reports import choose, rules
    from effprof.reports.emit import emit

    choose(as_json=as_json, as_markdown=as_markdown)
    listed = list_rules(which, load_calibration())
    emit(rules.render(listed, as_json=as_json, as_markdown=as_markdown), output)
    return 0
