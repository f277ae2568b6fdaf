"""Figures logged by name: TensorBoard event files and W&B's run files, written here and recorded elsewhere."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from effprof.analysis.foreign import examine_foreign
from effprof.cli.main import main
from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.scalars import pick
from effprof.runlog.importers.sniff import read_foreign, recognise
from effprof.runlog.importers.wandb import records

LOGS = Path(__file__).resolve().parents[4].parent / "shared" / "logs"


def recorded(name: str) -> str:
    path = LOGS / name
    if not path.exists():
        pytest.skip(f"{path} is not there: other people's logs are kept beside the repository")
    return str(path if path.is_file() else next(each for each in path.rglob("*") if each.is_file()))


def event_file(folder: Path, series: dict[str, list[tuple[int, float, float]]]) -> str:
    with SummaryWriter(str(folder)) as writer:
        for tag, values in series.items():
            for step, time_s, value in values:
                writer.add_scalar(tag, value, step, walltime=time_s)
    return str(next(folder.glob("events.out.*")))


def column(log: ForeignLog, name: str) -> list[float]:
    return [float(value) for value in log.columns[name]]


def test_torchtitan_s_tags_become_columns_with_units(tmp_path: Path) -> None:
    path = event_file(
        tmp_path,
        {
            "loss_metrics/global_avg_loss": [(10, 100.0, 8.0), (20, 105.0, 7.5)],
            "throughput(tps)": [(10, 100.1, 6000.0), (20, 105.1, 6100.0)],
            "mfu(%)": [(10, 100.1, 38.0), (20, 105.1, 39.0)],
            "memory/max_reserved(GiB)": [(10, 100.1, 2.0), (20, 105.1, 2.0)],
            "lr": [(10, 100.0, 1e-3)],
        },
    )
    log = read_foreign(path)
    assert log.format == "tensorboard"
    assert column(log, "step") == [10, 20]
    assert column(log, "mfu") == pytest.approx([0.38, 0.39])
    assert column(log, "tokens_per_s_per_device") == [6000, 6100]
    assert column(log, "memory_bytes") == [2 << 30, 2 << 30]
    assert column(log, "time_s") == [100.0, 105.0]
    assert "mfu(%) as mfu" in log.notes[0][1]
    source = examine_foreign(path).analysis.source
    assert source is not None
    assert (source.format, source.claimed.mfu) == ("tensorboard", pytest.approx(0.385))


def test_a_restart_s_steps_count_once(tmp_path: Path) -> None:
    steps = [(1, 10.0, 5.0), (2, 11.0, 4.0), (3, 12.0, 3.0), (2, 20.0, 4.5), (3, 21.0, 3.5)]
    log = read_foreign(event_file(tmp_path, {"train/loss": steps}))
    assert column(log, "loss") == [5.0, 4.5, 3.5]
    assert column(log, "time_s") == [10.0, 20.0, 21.0]
    assert log.repeated == 2


def test_a_torn_event_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = Path(event_file(tmp_path, {"loss": [(step, float(step), 1.0) for step in range(100)]}))
    whole = path.read_bytes()
    for size in (len(whole) - 5, len(whole) // 2, 200):
        path.write_bytes(whole[:size])
        assert 0 < read_foreign(str(path)).records < 100
    path.write_bytes(whole[:60])
    with pytest.raises(EffprofError, match="no scalar"):
        read_foreign(str(path))


@pytest.mark.parametrize(
    ("name", "records_", "step", "loss"),
    [("tensorboard_lightning_ts_v1", 38, 1899, 0.8049), ("tensorboard_lightning_ts_v3", 19, 949, 17.1526)],
)
def test_recorded_event_files(name: str, records_: int, step: float, loss: float) -> None:
    log = read_foreign(recorded(name))
    assert (log.format, log.records) == ("tensorboard", records_)
    assert column(log, "step")[-1] == step
    assert column(log, "loss")[-1] == pytest.approx(loss, abs=1e-4)


def test_recorded_steps_that_were_logged_twice() -> None:
    log = read_foreign(recorded("tensorboard_duplicate_steps"))
    assert (log.records, log.repeated) == (200, 10)


def test_a_pointer_in_place_of_the_file_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(Path(recorded("tensorboard_lfs_pointer")).parent)
    assert main(["analyze", folder]) == 2
    assert "Git LFS pointer" in capsys.readouterr().err


def test_recorded_wandb_run() -> None:
    path = next(Path(recorded("wandb_colossal_chat_rtx3060")).parents[0].rglob("*.wandb"), None)
    root = LOGS / "wandb_colossal_chat_rtx3060"
    log = read_foreign(str(path or next(root.rglob("*.wandb"))))
    assert (log.format, log.records) == ("wandb", 78)
    assert column(log, "step")[-1] == 77
    assert column(log, "loss")[-1] == pytest.approx(0.1046142578125)
    assert log.facts["device"] == "NVIDIA GeForce RTX 3060"
    assert recognise(str(next(root.rglob("wandb-summary.json")))) is None  # the run's own record says more


def wandb_file(path: Path, rows: list[dict[str, Any]]) -> None:
    """In LevelDB's log format, with a record that crosses blocks."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="wandb is not installed")
    data = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for row in rows:
        record = pb.Record()
        for key, value in row.items():
            item = record.history.item.add()
            item.key, item.value_json = key, json.dumps(value)
        message, kind = record.SerializeToString(), 1
        while True:
            rest = 32768 - len(data) % 32768
            if rest < 7:
                data += b"\0" * rest
                continue
            part, message = message[: rest - 7], message[rest - 7 :]
            is_first = kind == 1
            kind_now = (1 if is_first else 4) if not message else (2 if is_first else 3)
            data += struct.pack("<IHB", zlib.crc32(part), len(part), kind_now) + part
            kind = 3
            if not message:
                break
    path.write_bytes(bytes(data))


def test_a_wandb_history_across_blocks_and_torn(tmp_path: Path) -> None:
    rows = [
        {"_step": step, "_timestamp": 100.0 + step, "train/loss": 2.0, "tokens_per_sec": 5e4, "note": "x" * 9000}
        for step in range(20)
    ]
    path = tmp_path / "run-x.wandb"
    wandb_file(path, rows)
    assert len(list(records(path.read_bytes()))) == 20
    log = read_foreign(str(path))
    assert (log.format, log.records) == ("wandb", 20)
    assert column(log, "tokens_per_s") == [5e4] * 20
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert 5 < read_foreign(str(path)).records < 20
    path.write_bytes(whole[:7])
    with pytest.raises(EffprofError, match="no history"):
        read_foreign(str(path))


def test_settings_of_a_wandb_run_become_facts(tmp_path: Path) -> None:
    rows = [{"_step": step, "_timestamp": 100.0 + step, "train/loss": 2.0} for step in range(20)]
    wandb_file(tmp_path / "run-x.wandb", rows)
    (tmp_path / "files").mkdir()
    settings = "_wandb:\n    value:\n        cli_version: 0.19.8\n        t: [1, 5]\nbf16:\n    value: true\n"
    settings += "max_seq_length:\n    desc: null\n    value: 2048\nper_device_train_batch_size:\n    value: 8\n"
    (tmp_path / "files" / "config.yaml").write_text(settings.replace("max_seq_length", "block_size"))
    log = read_foreign(str(tmp_path / "run-x.wandb"))
    assert log.facts == {"sequence_length": 2048, "micro_batch": 8, "dtype": "bf16"}


def test_a_summary_alone_is_one_record(tmp_path: Path) -> None:
    files = tmp_path / "run-1" / "files"
    files.mkdir(parents=True)
    summary = files / "wandb-summary.json"
    summary.write_text(
        '{"train/loss": 0.5, "mfu": 0.4, "other": "text", "_step": 77, "_timestamp": 5.0, "_runtime": 9}'
    )
    (files / "wandb-metadata.json").write_text('{"gpu": "NVIDIA H100 80GB HBM3", "gpu_count": 8}')
    log = read_foreign(str(summary))
    assert (log.records, column(log, "mfu"), log.facts["device"]) == (1, [0.4], "NVIDIA H100 80GB HBM3")
    summary.write_text('{"_step": 77, "_timestamp": 5.0, "_runtime"')
    with pytest.raises(EffprofError):
        read_foreign(str(summary))


def test_one_name_a_column_and_the_best_loss() -> None:
    assert pick(["lr", "mfu", "device/mfu", "loss", "train/loss"]) == {
        "device/mfu": ("mfu", 1),
        "train/loss": ("loss", 1),
    }
