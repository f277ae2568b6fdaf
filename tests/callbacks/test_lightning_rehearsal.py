"""Rehearsed loaders: a trial times its own loader with and without workers, beside the model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from effprof.advise.rehearsal import Rehearsed, read_rehearsed
from effprof.advise.trial import run_trial
from effprof.callbacks.lightning_rehearsal import _rebuilt

TRAINING = Path(__file__).resolve().parents[1] / "support" / "sleeping_training.py"


def rehearse(folder: Path, sleep_s: float, own_workers: int = 0) -> Rehearsed:
    """What a trial makes of two workers."""
    script = shutil.copy(TRAINING, folder)  # so that its processes can be told from another test's
    options = ("--step-s", "0.04", "--fetch-s", str(sleep_s), "--workers", str(own_workers))
    command = [sys.executable, str(script), *options]
    wanted = {"num_workers": 2, "persistent_workers": True}
    trial = run_trial(command, {}, folder / "trial", seconds=0.5, rehearse=[wanted], rehearse_s=2.0)
    assert trial.outcome == "ok", trial.reason
    (found,) = read_rehearsed(folder / "trial")
    return found


def test_workers_take_the_loading_away(tmp_path: Path) -> None:
    found = rehearse(tmp_path, 0.02)
    assert found.ratio == pytest.approx(40 / 80, abs=0.08), found  # 2 x 20 ms of loading before 40 ms of the model
    assert found.own_s == pytest.approx(0.08, abs=0.02)
    assert found.is_loaded
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())
    ]


@pytest.mark.parametrize(
    ("sleep_s", "own_workers", "said"), [(0.1, 0, "would lag behind the model"), (0.02, 1, "load ahead already")]
)
def test_what_a_moment_cannot_show_is_refused(tmp_path: Path, sleep_s: float, own_workers: int, said: str) -> None:
    found = rehearse(tmp_path, sleep_s, own_workers)
    assert found.ratio is None
    assert said in found.reason


class Stream(IterableDataset[torch.Tensor]):
    """Which torch gives a `__getitem__` too."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield torch.ones(1)


def test_larger_micro_batches_are_loaded_where_samples_can_be_read_twice_at_once() -> None:
    samples, larger = TensorDataset(torch.ones(8, 1)), {"micro_batch": 4, "accumulate": 1}
    assert _rebuilt(DataLoader(samples, batch_size=2), larger).batch_size == 4
    assert _rebuilt(DataLoader(Stream(), batch_size=2), larger) is None
    assert _rebuilt(DataLoader(samples, batch_size=2, num_workers=1), larger) is None, "workers load ahead"
    assert _rebuilt([torch.ones(2, 1)], larger) is None, "not a DataLoader"
    assert _rebuilt(DataLoader(samples, batch_size=2), {"threads": 1}) is None
