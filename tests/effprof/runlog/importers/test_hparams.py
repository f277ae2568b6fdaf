"""Settings beside a table of figures are read leaf by leaf; nothing in them is constructed."""

from __future__ import annotations

from pathlib import Path

import pytest

from effprof.cli.main import main
from effprof.runlog.importers.hparams import facts_beside
from effprof.runlog.importers.sniff import read_foreign

TABLE = "epoch,step,train_loss\n0,10,3.0\n0,20,2.5\n"


def folder(path: Path, settings: str) -> str:
    (path / "metrics.csv").write_text(TABLE)
    (path / "hparams.yaml").write_text(settings)
    return str(path / "metrics.csv")


def test_leaves_at_any_depth_become_facts(tmp_path: Path) -> None:
    settings = "cfg:\n  data:\n    batch_size: 64\n    block_size: 256\n"
    settings += "  trainer:\n    devices: 2\n    precision: 'bf16-mixed'\n"
    log = read_foreign(folder(tmp_path, settings + "accumulate_grad_batches: 4  # per device\n"))
    assert log.facts == {
        "sequence_length": 256, "micro_batch": 64, "accumulate": 4, "world_size": 2, "dtype": "bf16",
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        "model: !!python/object:os.system\n  args: ['echo']\nmax_seq_len: 128\n",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nmax_seq_len: 128\nprecision: !!python/name:torch.bfloat16\n",
        "max_seq_len: 128\nbatch_size: " + "9" * 10_000 + "\n",
        "max_seq_len: 128\nbatch_size: null\ndevices: auto\n\x00\xff: {",
    ],
)
def test_tags_bombs_and_odd_values_are_passed_over(settings: str, tmp_path: Path) -> None:
    assert facts_beside(folder(tmp_path, settings)) == {"sequence_length": 128}


def test_devices_of_a_node_are_not_the_job_s(tmp_path: Path) -> None:
    assert facts_beside(folder(tmp_path, "devices: 8\nnum_nodes: 4\n")) == {}
    assert facts_beside(str(tmp_path / "elsewhere" / "metrics.csv")) == {}


def test_a_folder_s_settings_are_no_unknown_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, "max_seq_len: 128\n")
    assert main(["analyze", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    assert "hparams.yaml" not in captured.err
    assert '"lightning-csv"' in captured.out
    (tmp_path / "metrics.csv").unlink()
    assert main(["analyze", str(tmp_path)]) == 2
