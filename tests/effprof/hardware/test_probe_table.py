"""The table of supported chips is what the probes declare, and docs/hardware.md has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from effprof.hardware.probe_table import BEGIN, END, declared, insert, render
from effprof.hardware.probes.base import Support, probe_classes

PAGE = Path(__file__).parents[3] / "docs" / "hardware.md"
CHIP = Support(
    family="ACME A1",
    source="acme-smi",
    readings={"power_w": "recorded", "memory_used_bytes": "run", "memory_total_bytes": "documented", "lamp": "run"},
    unavailable={"energy_j": "acme-smi has no counter"},
    evidence="A1, acme-smi 3.2",
)


def test_the_page_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert insert(page, render(*declared())) == page, "run python -m effprof.hardware.probe_table docs/hardware.md"


def test_cells_hold_the_best_state_and_notes_the_reasons() -> None:
    text = render([CHIP], ["Cerebras"])
    (row,) = [line for line in text.splitlines() if line.startswith("| ACME")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "ACME A1", "acme-smi", "", "run", "recorded", "–", "", "", "", "", "1",
    ]  # fmt: skip
    assert "- ACME A1: A1, acme-smi 3.2; no `energy_j`: acme-smi has no counter." in text
    assert "- **Peaks only, no probe:** Cerebras." in text


def test_what_was_never_run_is_named() -> None:
    never = Support("ACME A2", "acme-smi", {"power_w": "recorded"})
    text = render([CHIP, never], [])
    assert "- **Run on:** ACME A1." in text
    assert "- **Never run on:** ACME A2." in text


@pytest.mark.parametrize("name", [name for name, _ in probe_classes()])
def test_every_probe_declares_what_it_reads(name: str) -> None:
    support = dict(probe_classes())[name].support
    assert support.family
    assert support.source
    assert support.readings
    assert set(support.readings.values()) <= {"run", "recorded", "documented"}
    assert not set(support.readings) & set(support.unavailable)


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{BEGIN} … {END}"):
        insert("# Hardware\n", "table")
