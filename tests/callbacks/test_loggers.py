"""What the callback gives to the Trainer's loggers arrives in each of them, read back with the logger's own reader."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from effprof.callbacks import EfficiencyCallback
from tests.support.tiny_lightning import Tiny, token_loader, trainer

FIGURES = ("effprof/mfu", "effprof/tokens_per_s_per_device", "effprof/samples_per_s_per_device")


def fit(folder: Path, logger: Any) -> None:
    callback = EfficiencyCallback(folder / "run", telemetry=False, peak_tflops=0.05)
    trainer(folder, callbacks=[callback], logger=logger, max_steps=12, log_every_n_steps=4).fit(
        Tiny(), token_loader(12)
    )


def check(values: dict[str, list[float]]) -> None:
    for name in FIGURES:
        assert values.get(name), name
        assert all(math.isfinite(value) and value > 0 for value in values[name]), name
    assert max(values["effprof/mfu"]) < 1


def test_tensorboard(tmp_path: Path) -> None:
    fit(tmp_path, TensorBoardLogger(str(tmp_path), name="tb"))
    events = EventAccumulator(str(next((tmp_path / "tb").glob("version_*"))))
    events.Reload()
    check({name: [event.value for event in events.Scalars(name)] for name in FIGURES})
    assert [event.step for event in events.Scalars("effprof/mfu")] == sorted(
        event.step for event in events.Scalars("loss")
    )


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the small package has no database behind it
    store = f"file:{tmp_path}/mlruns"
    logger = MLFlowLogger(experiment_name="tiny", tracking_uri=store)
    fit(tmp_path, logger)
    client = mlflow.tracking.MlflowClient(tracking_uri=store)
    check({name: [each.value for each in client.get_metric_history(logger.run_id, name)] for name in FIGURES})


WANDB = """
import json, sys, wandb
from pathlib import Path
from pytorch_lightning.loggers import WandbLogger
from tests.callbacks.test_loggers import fit

folder = Path(sys.argv[1])
logger = WandbLogger(offline=True, save_dir=str(folder), project="tiny")
fit(folder, logger)
summary = dict(logger.experiment.summary)
wandb.finish()
print("SUMMARY", json.dumps({name: value for name, value in summary.items() if isinstance(value, (int, float))}))
"""


def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    assert WandbLogger
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(tmp_path)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "WANDB_SILENT": "true",
            "WANDB_MODE": "offline",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SUMMARY")]
    summary = json.loads(line.removeprefix("SUMMARY "))
    check({name: [summary[name]] for name in FIGURES if name in summary})
    assert list((tmp_path / "wandb").glob("offline-run-*"))
