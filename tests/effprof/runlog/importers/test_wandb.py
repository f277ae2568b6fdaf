"""Hostile summaries of W&B end with a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from effprof.errors import EffprofError
from effprof.runlog.importers.sniff import read_foreign


@pytest.mark.parametrize("value", ["1" + "0" * 400, "[" * 100_000, "true"])
def test_a_hostile_summary_is_an_error_to_read(value: str, tmp_path: Path) -> None:
    path = tmp_path / "wandb-summary.json"
    path.write_text(f'{{"_step": 1, "_timestamp": 5.0, "_runtime": 9, "train/loss": {value}}}')
    with pytest.raises(EffprofError):
        read_foreign(str(path))
