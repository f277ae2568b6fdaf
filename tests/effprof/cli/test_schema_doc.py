"""docs/schema.md cannot lag behind the types of any document."""

from __future__ import annotations

from pathlib import Path

from effprof.analysis.schema_doc import keys
from effprof.cli.schema_doc import DOCUMENTS, render

ROOT = Path(__file__).parents[3]


def test_the_document_is_what_the_types_say() -> None:
    assert (ROOT / "docs" / "schema.md").read_text() == render(), (
        "run python -m effprof.cli.schema_doc > docs/schema.md"
    )


def test_every_document_names_its_schema() -> None:
    for document in DOCUMENTS:
        assert keys(document.type)[0].path == "schema"
        assert document.schema.startswith("effprof.")
