"""`effprof verify` and `effprof tune` from the command line: on a real training, and on bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from effprof.cli.main import main
from effprof.cli.trials import read_budget, read_changes
from effprof.errors import EffprofError

RECORDED = Path(__file__).resolve().parents[2] / "support" / "recorded_training.py"
REAL = """
import time
import torch
import pytorch_lightning as pl
from effprof.callbacks.lightning import EfficiencyCallback

class Slow(pl.Callback):
    def on_train_batch_end(self, *_):
        time.sleep(0.05)

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(32, 32)
    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

data = torch.utils.data.TensorDataset(torch.randn(100_000, 32))
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[EfficiencyCallback(), Slow()], logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=8))
"""


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EFFPROF_CALIBRATION", str(tmp_path / "calibration.jsonl"))


def recorded(*arguments: str) -> list[str]:
    return [sys.executable, str(RECORDED), *arguments]


def recorded_run(tmp_path: Path, ratio: str = "0.5") -> str:
    """The run that the recorded training leaves without a change."""
    run = tmp_path / "run"
    request = json.dumps({"changes": {}, "run_dir": str(run)})
    subprocess.run(recorded(ratio), env={**os.environ, "EFFPROF_TRIAL": request}, check=True)
    return str(run)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = main(list(arguments))
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out.startswith("{") else printed.out, printed.err


def test_a_change_of_a_real_training_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.py").write_text(REAL)
    command = ["--", sys.executable, "train.py"]
    code, said, told = answer(
        capsys, "verify", "--change", 'disable_callbacks=["Slow"]', "--budget", "12s", "--json", *command
    )
    assert said["schema"] == "effprof.verify/1"
    assert said["metric"] == "samples_per_s"
    assert said["changes"] == {"disable_callbacks": ["Slow"]}
    assert said["obtained"]["value"] > 0.5, said
    assert said["after"] > said["before"]
    assert code == (0 if said["verdict"] == "confirmed" else 1)
    assert "segment 1" in told
    assert all(Path(each["run"]).is_dir() for each in said["segments"])


def test_a_finding_is_confirmed_and_shown_as_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded_run(tmp_path)
    code, said, _ = answer(capsys, "verify", run, "--finding", "in-workers", "--json", "--", *recorded("0.5"))
    assert (code, said["verdict"]) == (0, "confirmed")
    assert said["finding"] == "in-workers"
    assert said["predicted"]["bound"] >= said["predicted"]["likely"] > 0
    assert json.loads((Path(run) / "verified" / "in-workers.json").read_text())["verdict"] == "confirmed"
    assert len((tmp_path / "calibration.jsonl").read_text().splitlines()) == 1
    _, recommended, _ = answer(capsys, "recommend", run, "--json")
    assert {each["id"]: each["verified"] for each in recommended["findings"]}["in-workers"] is True


def test_a_finding_that_slows_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded_run(tmp_path)
    code, text, _ = answer(capsys, "verify", run, "--finding", "in-workers", "--", *recorded("1.4"))
    assert code == 1
    assert "effprof verify: refuted" in text
    assert "slower" in text
    _, recommended, _ = answer(capsys, "recommend", run, "--json")
    assert not any(each["verified"] for each in recommended["findings"])


def test_nothing_is_learned_where_calibration_is_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFPROF_CALIBRATION", "off")
    code, text, _ = answer(
        capsys, "verify", recorded_run(tmp_path), "--finding", "in-workers", "--markdown", "--", *recorded("0.5")
    )
    assert code == 0
    assert text.startswith("### effprof verify: confirmed")
    assert not (tmp_path / "calibration.jsonl").exists()


def test_tune_writes_its_result_and_prints_the_snippet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, told = answer(capsys, "tune", "--budget", "60s", "-o", "best.json", "--", *recorded("0.5"))
    assert code == 0
    assert "write into your script:" in text
    assert "num_workers=3" in text
    assert "measuring the training as it is" in told
    written = json.loads((tmp_path / "best.json").read_text())
    assert written["schema"] == "effprof.tune/1"
    assert written["final"]["changes"]["num_workers"] == 3


def test_an_interrupted_verification_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    # a shell's background job ignores SIGINT, and so would what it starts
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "import sys; from effprof.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "verify", "--change", "num_workers=1", "--json", "--"]
    process = subprocess.Popen([*command, sys.executable, "hang.py"], stdout=subprocess.PIPE, text=True)
    mark = tmp_path / "pid"
    for _ in range(300):
        if mark.exists() and mark.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out)["is_interrupted"] is True
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify"], "one of --finding and --change"),
        (["verify", "--change", "num_workers=1"], "no training command"),
        (["verify", "--change", "num_workers"], "no value"),
        (["verify", "--change", "warp=9", "--", "true"], "no such change"),
        (["verify", "--change", "num_workers=1", "--budget", "soon", "--", "true"], "not a duration"),
        (["verify", "--change", "num_workers=1", "--", "no-such-program"], "No such file"),
        (["verify", "--change", "num_workers=1", "--", "true"], "is EfficiencyCallback in the Trainer's callbacks?"),
        (["verify", "nowhere", "--finding", "in-workers", "--", "true"], "nowhere"),
        (["tune"], "no training command"),
        (["tune", "--", "true"], "is EfficiencyCallback in the Trainer's callbacks?"),
    ],
)
def test_bad_input_is_said_in_a_line_or_two(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_finding_that_the_run_does_not_have_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded_run(tmp_path)
    assert main(["verify", run, "--finding", "no-such-rule", "--", "true"]) == 2
    assert "no such rule" in capsys.readouterr().err


def test_budgets_and_changes_are_read_as_people_type_them() -> None:
    assert [read_budget(text) for text in ("90", "90s", "5m", "1.5h")] == [90, 90, 300, 5400]
    assert read_changes(["num_workers=4", "precision=bf16-mixed", "compile=true"]) == {
        "num_workers": 4,
        "precision": "bf16-mixed",
        "compile": True,
    }
    with pytest.raises(EffprofError, match="not a value of this change"):
        read_changes(["num_workers=many"])
