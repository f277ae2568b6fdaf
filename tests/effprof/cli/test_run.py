"""`effprof run` measures commands that know nothing of effprof, and stays out of the way of all others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from effprof.analysis.analyze import analyze
from effprof.callbacks.inject import outcome, prepare
from effprof.runlog.reader import open_run

LIGHTNING = """
import sys
from pytorch_lightning import Trainer
from tests.support.tiny_lightning import Tiny, token_loader
from effprof.callbacks import EfficiencyCallback

own = [EfficiencyCallback(run_dir=sys.argv[1], telemetry=False)] if len(sys.argv) > 1 else None
trainer = Trainer(
    max_steps=12, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=own,
)
trainer.fit(Tiny(), token_loader(12))
print("callbacks", sum(isinstance(each, EfficiencyCallback) for each in trainer.callbacks))
"""
TRANSFORMERS = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, index):
        ids = torch.arange(index, index + 24) % 90
        return {"input_ids": ids, "labels": ids}

model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                     num_key_value_heads=2, vocab_size=96))
arguments = TrainingArguments(output_dir="out", max_steps=8, report_to=[], use_cpu=True, disable_tqdm=True)
Trainer(model=model, args=arguments, train_dataset=Rows()).train()
sys.exit(7)
"""
ROOT = Path(__file__).parents[3]


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "effprof.cli.main", "run", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_a_transformers_trainer_is_measured_and_the_exit_code_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRANSFORMERS)
    done = run(tmp_path, "--run-dir", "record", "--json", "--", sys.executable, "train.py")
    assert done.returncode == 7, done.stderr
    told = json.loads(done.stdout)
    assert told == {
        "schema": "effprof.launch/1",
        "command": [sys.executable, "train.py"],
        "exit_code": 7,
        "runs": [str(tmp_path / "record")],
    }
    assert "train_loss" in done.stderr  # what the command prints
    found = analyze(open_run(told["runs"][0]))
    assert (found.run.framework, found.efficiency.steps.total) == ("transformers", 8)


def test_a_lightning_trainer_is_measured_once(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(LIGHTNING)
    done = run(tmp_path, "--run-dir", "record", "--", sys.executable, "train.py")
    assert done.returncode == 0, done.stderr
    assert "callbacks 1" in done.stdout
    assert analyze(open_run(str(tmp_path / "record"))).efficiency.steps.total == 12


def test_a_trainer_with_a_callback_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(LIGHTNING)
    done = run(tmp_path, "--run-dir", "unused", "--", sys.executable, "train.py", "own")
    assert "callbacks 1" in done.stdout, done.stderr
    assert (tmp_path / "own" / "run.json").exists()
    assert not (tmp_path / "unused").exists()
    assert "nothing was recorded" not in done.stderr


def test_a_command_without_a_trainer_runs_as_ever_and_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "sitecustomize.py").write_text("import sys; sys.own_was_here = True")
    code = "import sys; print(sys.own_was_here, 'torch' in sys.modules)"
    done = run(tmp_path, "--", sys.executable, "-c", code, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path / 'here'}")
    assert done.returncode == 0
    assert done.stdout == "True False\n"
    assert "made no Trainer" in done.stderr
    assert "docs/integrations.md" in done.stderr


def test_an_environment_without_effprof_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    environment = prepare(tmp_path, {}, {"PATH": os.environ["PATH"]})
    # isolated from everything but the standard library and the folder of `run`
    keep = "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
    bare = f"import sys; {keep}; sys.path.insert(0, {str(tmp_path)!r}); import sitecustomize"
    (tmp_path / "bare.py").write_text(bare)
    subprocess.run([sys.executable, "-I", "-S", "bare.py"], cwd=tmp_path, env=environment, check=True, timeout=60)
    trainers, runs, missing = outcome(tmp_path)
    assert (trainers, runs) == (0, [])
    assert "effprof" in missing
    assert missing.startswith(sys.executable)


@pytest.mark.parametrize(("words", "says"), [(["--", "no-such-program"], "No such file"), ([], "no training command")])
def test_bad_input(words: list[str], says: str, tmp_path: Path) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_signal_is_passed_on_and_its_number_comes_back(tmp_path: Path) -> None:
    script = "import pathlib, time; pathlib.Path('up').touch(); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-m", "effprof.cli.main", "run", "--", sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        if (tmp_path / "up").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
