"""Trials: a training's own script with settings changed from outside, stopped early, leaving nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from effprof.advise.changes import CHANGES
from effprof.advise.rehearsal import read_rehearsed
from effprof.analysis.analyze import analyze
from effprof.callbacks import loader_changes
from effprof.callbacks.lightning_changes import EARLY, LOADER, OPTIMIZERS
from effprof.callbacks.loader_changes import Refused, rebuild, trim_padding, with_length_grouping
from effprof.runlog.reader import open_run

SCRIPT = """
import torch
import pytorch_lightning as pl
from transformers import LlamaConfig, LlamaForCausalLM
from pytorch_lightning.callbacks import ModelCheckpoint, EarlyStopping
from pytorch_lightning.loggers import CSVLogger
from effprof.callbacks.lightning import EfficiencyCallback

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4096
    def __getitem__(self, index):
        length = 5 + index % 7
        ids = torch.zeros(32, dtype=torch.long)
        ids[:length] = index % 60 + 1
        mask = (torch.arange(32) < length).long()
        return {{"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}}

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2))
        self.net.gradient_checkpointing_enable()
    def training_step(self, batch, index):
        loss = self.net(**batch).loss
        self.log("loss", loss)
        print("SEEN", tuple(batch["input_ids"].shape), self.trainer.precision, self.trainer.accumulate_grad_batches,
              self.net.is_gradient_checkpointing, self.trainer.optimizers[0].param_groups[0]["fused"], flush=True)
        return loss
    def validation_step(self, batch, index):
        print("EVALUATED", flush=True)
        self.log("val_loss", self.net(**batch).loss)
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {{"optimizer": optimizer, "lr_scheduler": {{"scheduler": schedule, "monitor": "val_loss"}}}}

loader = lambda: torch.utils.data.DataLoader(Rows(), batch_size=2)
trainer = pl.Trainer(max_epochs=2, accumulate_grad_batches=4, default_root_dir={root!r}, accelerator="cpu",
    callbacks=[EfficiencyCallback(), ModelCheckpoint(every_n_train_steps=2), EarlyStopping("val_loss")],
    logger=CSVLogger({root!r}, flush_logs_every_n_steps=1), log_every_n_steps=1, val_check_interval=8,
    enable_progress_bar=False, enable_model_summary=False, {more})
trainer.fit(Model(), loader(), loader())
print("AFTER FIT")
"""


def run_trial(
    tmp_path: Path, changes: dict[str, Any], trainer: str = "", **request: Any
) -> tuple[subprocess.CompletedProcess[str], Path]:
    root, trial = tmp_path / "own", tmp_path / "trial"
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(root=str(root), more=trainer))
    request = {"changes": changes, "run_dir": str(trial), "steps": 6, **request}
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "EFFPROF_TRIAL": json.dumps(request)},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    return done, trial


def seen(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN")]
    assert lines, done.stderr
    return lines[-1]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    changes = {
        "precision": "bf16-mixed",
        "micro_batch": 8,
        "gradient_checkpointing": False,
        "fused_optimizer": True,
        "trim_padding": True,
        "channels_last": True,
        "num_workers": 0,
        "compile": False,
        "find_unused_parameters": False,
    }
    folder = tmp_path_factory.mktemp("changed")
    return *run_trial(folder, changes), folder


def test_changes_are_made_without_touching_the_script(changed: Any) -> None:
    done, _, _ = changed
    # the longest of eight neighbouring samples holds 11 tokens; 2 x 4 samples per step are kept as 8 x 1
    assert seen(done) == "SEEN (8, 11) bf16-mixed 1 False True"


def test_the_record_says_what_was_changed_and_what_did_not_fit(changed: Any) -> None:
    _, trial, _ = changed
    run = open_run(str(trial))
    facts = run.record.config["trial"]
    assert facts["applied"]["precision"] == "bf16-mixed"
    assert set(facts["refused"]) == {"find_unused_parameters"}
    analysis = analyze(run)
    assert analysis.efficiency.steps.total == 6
    assert analysis.efficiency.samples_per_step == 8
    assert analysis.efficiency.tokens_per_s.median is not None


def test_a_trial_leaves_nothing_where_the_training_would(changed: Any) -> None:
    done, _, folder = changed
    assert done.returncode == 0, done.stderr
    assert "EVALUATED" not in done.stdout
    assert "AFTER FIT" not in done.stdout
    assert not list((folder / "own").rglob("*.ckpt"))
    assert not (folder / "own").exists() or not any((folder / "own").iterdir())
    assert list((folder / "trial" / "logs").rglob("metrics.csv"))


def test_a_trial_without_changes_is_the_training_itself(tmp_path: Path) -> None:
    done, trial = run_trial(tmp_path, {}, steps=None, seconds=0.5)
    assert done.returncode == 0, done.stderr
    assert seen(done) == "SEEN (2, 32) 32-true 4 True None"
    assert open_run(str(trial)).record.config["trial"] == {"applied": {}, "refused": {}}


def test_a_trial_ends_a_training_that_must_not_end_early(tmp_path: Path) -> None:
    done, trial = run_trial(tmp_path, {}, trainer="min_steps=900, min_epochs=2")
    assert done.returncode == 0, done.stderr
    analysis = analyze(open_run(str(trial)))
    assert (analysis.run.ended, analysis.run.ended_reason) == ("completed", "")
    assert analysis.efficiency.steps.total == 6


@pytest.fixture(scope="module")
def rehearsing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("rehearsing")
    wanted: list[dict[str, Any]] = [
        {"gradient_checkpointing": False},
        {"micro_batch": 8, "accumulate": 1},
        {"length_grouping": True},
        {"threads": torch.get_num_threads()},
        {"precision": "bf16-true"},
        {"fused_optimizer": True},
        {"micro_batch": 400, "accumulate": 1},
    ]
    done, trial = run_trial(folder, {}, steps=8, rehearse=wanted)
    assert done.returncode == 0, done.stderr
    return done, trial, read_rehearsed(trial)


def test_a_trial_rehearses_changes_in_its_own_process(rehearsing: Any) -> None:
    _, trial, found = rehearsing
    recompute, merged, grouped, threads = found[:4]
    assert all(each.ratio and each.rounds >= 5 for each in found[:4]), found
    assert recompute.ratio < 1, "the forward is no longer computed twice"
    assert (merged.merged, recompute.merged) == (4, 1)
    assert (merged.is_loaded, recompute.is_loaded) == (True, False)
    assert merged.ratio < 0.7, "a tiny model takes as long for eight samples as for two"
    assert grouped.ratio < 1.2
    low, high = threads.ci95
    assert low < 1.25, "as many threads as before"
    assert high > 0.8
    assert 0.5 < threads.ratio < 2, "per micro-batch on both sides"
    analysis = analyze(open_run(str(trial)))
    assert analysis.run.ended == "completed"
    assert analysis.efficiency.steps.total == 8, "rehearsed micro-batches are no steps of the training"
    rehearsing_s = sum(each.seconds for each in found)
    assert rehearsing_s > 1
    assert analysis.account.lines["effprof"] > rehearsing_s
    assert analysis.account.lines["step.other"] < rehearsing_s


def test_what_cannot_be_rehearsed_says_why(rehearsing: Any) -> None:
    found = rehearsing[2][4:]
    assert [each.ratio for each in found] == [None] * 3
    assert [each.reason for each in found] == [
        "bf16-true converts the weights",
        "fused_optimizer: what it changes is not forward and backward alone",
        "32 micro-batches of 2 samples make none of 400",
    ]


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    done, trial = run_trial(tmp_path, {"micro_batch": 3})
    assert done.returncode == 0, done.stderr
    assert "no multiple of 3" in open_run(str(trial)).record.config["trial"]["refused"]["micro_batch"]
    assert "(2, 32)" in seen(done)


def test_an_unknown_change_stops_the_trial(tmp_path: Path) -> None:
    done, _ = run_trial(tmp_path, {"warp_speed": 9})
    assert done.returncode != 0
    assert "warp_speed: no such change" in done.stderr


def test_every_change_of_the_vocabulary_can_be_made() -> None:
    assert set(CHANGES) == set(EARLY) | set(OPTIMIZERS) | set(LOADER)


def test_trailing_padding_is_cut_and_leading_padding_kept() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]])
    batch = {"attention_mask": mask, "input_ids": torch.arange(10).view(2, 5), "weight": torch.ones(2, 3)}
    trimmed = trim_padding(batch)
    assert trimmed["input_ids"].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert trimmed["weight"].shape == (2, 3)
    with pytest.raises(Refused):
        trim_padding({"input_ids": mask})


def samples(count: int) -> list[dict[str, torch.Tensor]]:
    lengths = [1 + (7 * index) % 16 for index in range(count)]
    return [
        {"input_ids": torch.ones(16, dtype=torch.long), "attention_mask": (torch.arange(16) < length).long()}
        for length in lengths
    ]


def test_grouping_by_length_keeps_every_sample_and_cuts_padding() -> None:
    data = samples(512)
    plain = torch.utils.data.DataLoader(data, batch_size=8)  # type: ignore[arg-type]
    grouped = with_length_grouping(plain)
    batches = list(grouped)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert tokens == sum(int(sample["attention_mask"].sum()) for sample in data)
    assert sum(batch["input_ids"].numel() for batch in batches) < 0.75 * 512 * 16


def test_grouping_reads_no_more_of_a_large_dataset_than_a_trial_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        reads = 0

        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            self.reads += 1
            return samples(16)[index % 16] | {"place": torch.tensor(index)}

    monkeypatch.setattr(loader_changes, "READ_SAMPLES", 512)
    monkeypatch.setattr(loader_changes, "READ_S", 0.0)
    data = Large()
    grouped = with_length_grouping(torch.utils.data.DataLoader(data, batch_size=8))
    assert data.reads <= 300, "the limit of time ends the reading once there is enough to group"
    places = torch.cat([batch["place"] for batch in grouped])
    assert len(places) == len(places.unique()) == 256
    assert places.max() > 10**8, "they come from all of it"


def test_a_loader_keeps_what_was_not_changed() -> None:
    data = samples(8)
    loader = torch.utils.data.DataLoader(data, batch_sampler=[[3, 1], [0, 2]])  # type: ignore[arg-type]
    again = rebuild(loader, pin_memory=False)
    assert [batch["attention_mask"].sum().item() for batch in again] == [
        batch["attention_mask"].sum().item() for batch in loader
    ]
    with pytest.raises(Refused, match="batches are made by a list"):
        rebuild(loader, batch_size=4)
    with pytest.raises(Refused, match="not from a DataLoader"):
        rebuild([1, 2], batch_size=4)
