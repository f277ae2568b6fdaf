"""TensorBoard event files: tags become columns, times of logging become step times, broken files end early."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from effprof.analysis.foreign import Given, examine_foreign
from effprof.cli.main import main
from effprof.errors import EffprofError
from effprof.runlog.importers.base import ForeignLog
from effprof.runlog.importers.sniff import read_foreign

SHARED = Path(__file__).resolve().parents[4].parent / "shared" / "logs"
Scalar = tuple[int, float, str, float]


def written(folder: Path, scalars: list[Scalar]) -> Path:
    """An event file of (step, Unix time, tag, value), by the package's own writer."""
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for step, time_s, tag, value in scalars:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(step=step, wall_time=time_s, summary=summary))
    writer.close()
    (path,) = folder.glob("events.out.tfevents.*")
    return path


def losses(steps: range, start: float = 1000.0, seconds: float = 2.0) -> list[Scalar]:
    return [(step, start + seconds * number, "train/loss", float(step)) for number, step in enumerate(steps)]


def shared(name: str) -> ForeignLog:
    pytest.importorskip("tensorboard")
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"{folder} is not here: other people's logs lie beside the repository only")
    (path,) = folder.rglob("events.out.tfevents.*")
    return read_foreign(str(path))


def test_step_times_follow_from_the_times_of_logging(tmp_path: Path) -> None:
    path = written(tmp_path, losses(range(0, 300, 10)))
    found = examine_foreign(str(path), Given()).analysis
    assert found.source is not None
    assert (found.source.format, found.source.steps) == ("tensorboard", 30)
    assert found.efficiency.step_time_s.median == pytest.approx(0.2)
    assert found.efficiency.tokens_per_s.median is None


@pytest.mark.parametrize(
    ("tag", "value", "column", "expected"),
    [
        ("iteration-time", 1.5, "step_time_s", 1.5),
        ("throughput", 140.0, "tflops_per_device", 140.0),
        ("throughput(tps)", 6700.0, "tokens_per_s_per_device", 6700.0),
        ("mfu(%)", 20.0, "mfu", 0.2),
        ("effprof/mfu", 0.5, "mfu", 0.5),
        ("lm loss", 3.0, "loss", 3.0),
    ],
)
def test_known_tags_become_columns(tag: str, value: float, column: str, expected: float, tmp_path: Path) -> None:
    log = read_foreign(str(written(tmp_path, [(step, 10.0 * step, tag, value) for step in range(5)])))
    assert log.columns[column] == pytest.approx([expected] * 5, rel=1e-6)
    assert f"{tag} as {column}" in dict(log.notes)["columns"]


def test_of_steps_logged_again_after_a_restart_the_last_count(tmp_path: Path) -> None:
    again = [(step, 5000.0 + step, "train/loss", -1.0) for step in range(6, 12)]
    log = read_foreign(str(written(tmp_path, losses(range(10)) + again)))
    assert log.columns["step"].tolist() == list(range(12))
    assert log.columns["loss"].tolist() == [0, 1, 2, 3, 4, 5] + [-1.0] * 6
    assert log.repeated == 4


def test_a_restart_s_files_are_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    first = written(tmp_path / "a", losses(range(10)))
    second = written(tmp_path / "b", [(step, 5000.0 + step, "train/loss", -1.0) for step in range(6, 12)])
    run.mkdir()
    first.rename(run / "events.out.tfevents.1000.host.1.0")
    second.rename(run / "events.out.tfevents.5000.host.1.0")
    (run / "events.out.tfevents.0.host.1.0").write_bytes(b"")  # of a start that died
    log = read_foreign(str(run))
    assert log.columns["step"].tolist() == list(range(12))
    assert log.columns["loss"].tolist() == [0, 1, 2, 3, 4, 5] + [-1.0] * 6
    assert log.repeated == 4
    for folder in (run, tmp_path):
        assert main(["analyze", str(folder), "--json"]) == 0
        documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [each["source"]["steps"] for each in documents] == [12]
    assert main(["analyze", str(run / "events.out.tfevents.1000.host.1.0"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"]["steps"] == 10, "one file is that file"
    assert main(["compare", str(run), str(run / "events.out.tfevents.5000.host.1.0")]) == 0


def test_a_nan_loss_keeps_its_step(tmp_path: Path) -> None:
    log = read_foreign(str(written(tmp_path, [*losses(range(3)), (3, 1006.0, "train/loss", float("nan"))])))
    assert log.records == 4
    assert np.isnan(log.columns["loss"][3])


def test_an_unknown_tag_is_not_taken_for_a_figure(tmp_path: Path) -> None:
    log = read_foreign(str(written(tmp_path, [(step, 10.0 * step, "foo", 1.0) for step in range(5)])))
    assert set(log.columns) == {"step", "time_s"}


@pytest.mark.parametrize("tail", [b"\x01\x02", struct.pack("<Q", 1 << 62) + b"\0\0\0\0", b"\xff" * 40])
def test_events_before_a_broken_one_count(tail: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, losses(range(8)))
    path.write_bytes(path.read_bytes() + tail)
    log = read_foreign(str(path))
    assert log.records == 8
    assert "torn_event" in dict(log.notes)


def test_a_length_that_no_memory_holds_ends_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, losses(range(8)))
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    for length in (1 << 61, (1 << 64) - 1):
        header = struct.pack("<Q", length)
        broken = tmp_path / f"{length}"
        broken.write_bytes(path.read_bytes() + header + struct.pack("<I", masked_crc32c(header)))
        assert read_foreign(str(broken)).records == 8


def test_a_file_without_scalars_says_so(tmp_path: Path) -> None:
    with pytest.raises(EffprofError, match="no scalar"):
        read_foreign(str(written(tmp_path, [])))


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, losses(range(3)))
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(EffprofError, match=r"pip install 'effprof\[tensorboard\]'"):
        read_foreign(str(path))


def test_reading_loads_neither_torch_nor_tensorflow_and_the_formats_not_even_tensorboard(tmp_path: Path) -> None:
    path = written(tmp_path, losses(range(3)))
    script = (
        "import sys; from effprof.runlog.importers.base import all_importers; all_importers(); "
        "assert 'tensorboard' not in sys.modules; from effprof.runlog.importers.sniff import read_foreign; "
        f"read_foreign({str(path)!r}); assert not {{'torch', 'tensorflow'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("name", "records"), [("tensorboard_lightning_ts_v1", 38), ("tensorboard_lightning_ts_v3", 19)]
)
def test_a_published_event_file_is_read(name: str, records: int) -> None:
    log = shared(name)
    assert (log.records, log.repeated) == (records, 0)
    assert log.has("loss")
    assert (np.diff(log.columns["time_s"]) > 0).all()


def test_a_published_event_file_with_every_step_twice() -> None:
    log = shared("tensorboard_duplicate_steps")
    assert (np.diff(log.columns["step"]) > 0).all()
    assert log.repeated > 0
    assert not log.has("loss")


def test_a_pointer_of_git_lfs_is_named() -> None:
    with pytest.raises(EffprofError, match="Git LFS pointer"):
        shared("tensorboard_lfs_pointer")
