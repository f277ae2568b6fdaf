"""Makes docs/schema.md: the documents of all floors.

Run as `python -m effprof.cli.schema_doc > docs/schema.md`. A command that prints a new document adds a row here.
"""

from __future__ import annotations

import sys

from effprof.advise import listing, recommend, tune, verification
from effprof.analysis import check, current, schema_doc
from effprof.analysis.schema_doc import Document

DOCUMENTS = (
    Document(check.SCHEMA, "effprof check --json", check.Check),
    Document(recommend.SCHEMA, "effprof recommend --json", recommend.Recommendations),
    Document(listing.SCHEMA, "effprof rules --json", listing.Rules),
    Document(verification.SCHEMA, "effprof verify --json", verification.Verification),
    Document(tune.SCHEMA, "effprof tune --json", tune.Tuned),
    Document(current.SCHEMA, "effprof watch --json", current.Watch),
)


def render() -> str:
    """The text of docs/schema.md."""
    return schema_doc.render(DOCUMENTS)


if __name__ == "__main__":
    sys.stdout.write(render())
