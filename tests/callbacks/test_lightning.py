"""EfficiencyCallback in real Lightning trainings: what it records is right, and the training is as without it."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny_lightning as models
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from effprof.analysis.analyze import analyze
from effprof.callbacks import EfficiencyCallback
from effprof.runlog.reader import RankLog, Run, open_run
from effprof.runlog.schema import PHASES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def callback(**settings: Any) -> EfficiencyCallback:
    """The callback under test; with a given peak where the test is not about the ceiling, which takes seconds."""
    return EfficiencyCallback(**{"peak_tflops": 0.1, "telemetry": False, **settings})


def read(cb: EfficiencyCallback) -> Run:
    assert cb.run_dir is not None
    return open_run(cb.run_dir)


def rank_of(cb: EfficiencyCallback) -> RankLog:
    return read(cb).attempts[-1].ranks[0]


def total(rank: RankLog, phase: str) -> float:
    """Seconds that went to `phase`, inside steps and outside."""
    inside = np.nansum(rank.columns.get(f"{phase}_ns", np.zeros(1)))
    return float(inside + sum(span.end_ns - span.start_ns for span in rank.spans if span.name == phase)) / 1e9


def test_no_argument_gives_mfu_tokens_and_a_closed_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cb = EfficiencyCallback()
    models.trainer(tmp_path, [cb], max_steps=40).fit(models.Tiny(), models.token_loader(40))
    run = read(cb)
    assert Path(run.path).parent == tmp_path / "effprof_runs"
    rank = run.attempts[0].ranks[0]
    tokens = models.ROWS * models.LENGTH
    assert rank.columns["step"].tolist() == list(range(1, 41))
    assert set(rank.columns["tokens"]) == {tokens}
    assert set(rank.columns["samples"]) == {models.ROWS}
    assert run.record.framework == "pytorch_lightning"
    assert run.attempts[0].nodes[0].samples or rank.last_ns - rank.header.monotonic_ns < 2e9
    result = analyze(run)
    conventions = result.efficiency.conventions
    assert conventions.exact.flops_per_token == models.FLOPS_PER_TOKEN
    assert conventions.exact.flops_per_step == models.FLOPS_PER_TOKEN * tokens
    assert result.efficiency.mfu.value is not None
    assert 0 < result.efficiency.mfu.value < 1
    assert "ceiling" in str(result.efficiency.mfu.peak_source)
    assert sum(result.account.lines.values()) == pytest.approx(result.account.wall_s, abs=1e-6)
    assert result.account.lines["effprof"] > 0
    shown = capsys.readouterr().out
    assert f"effprof analyze {cb.run_dir}" in shown
    assert "of ceiling" in shown  # a CPU has no datasheet peak, so it is not called MFU


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5}])
def test_training_is_bit_identical_with_and_without(tmp_path: Path, settings: dict[str, Any]) -> None:
    def weights(callbacks: list[Any]) -> torch.Tensor:
        pl.seed_everything(3, verbose=False)
        module = models.Tiny()
        models.trainer(tmp_path, callbacks, max_steps=12, **settings).fit(module, models.token_loader(40))
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    assert torch.equal(weights([]), weights([EfficiencyCallback(telemetry=False)]))


def test_steps_hold_accumulated_micro_batches_and_evaluation_is_taken_out(tmp_path: Path) -> None:
    cb = callback()
    models.trainer(
        tmp_path,
        [cb, ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1)],
        max_epochs=2,
        accumulate_grad_batches=4,
        val_check_interval=8,
        enable_checkpointing=True,
    ).fit(models.Tiny(), models.token_loader(18), models.token_loader(20))
    rank = rank_of(cb)
    # 18 batches by 4: the fifth step of each epoch holds the two that are left
    assert rank.columns["micro_batches"].tolist() == [4, 4, 4, 4, 2] * 2
    assert rank.columns["tokens"].tolist() == [256, 256, 256, 256, 128] * 2
    phases = sum(np.nan_to_num(rank.columns[f"{name}_ns"]) for name in PHASES if f"{name}_ns" in rank.columns)
    assert (phases[1:] == np.diff(rank.columns["end_ns"])).all()
    for phase in ("input_wait", "host_to_device", "forward", "backward", "optimizer", "evaluation", "checkpoint"):
        assert total(rank, phase) > 0, phase
    assert len(list((tmp_path / "saved").iterdir())) == 2
    # the sanity check before the first step is evaluation too
    assert rank.spans[0].name == "startup"
    assert any(span.name == "evaluation" and span.end_ns < rank.columns["end_ns"][0] for span in rank.spans)


def test_manual_optimisation_counts_passes_of_the_loop(tmp_path: Path) -> None:
    cb = callback(flops_per_step=1e6)
    noise = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(48, 8)), batch_size=4)
    models.trainer(tmp_path, [cb], max_epochs=1).fit(models.Gan(), noise)
    rank = rank_of(cb)
    assert rank.steps == 12
    assert rank.columns["step"].tolist() == list(range(2, 25, 2))  # Lightning counts both optimizers' steps
    assert set(rank.columns["micro_batches"]) == {1}
    for phase in ("forward", "backward", "optimizer"):
        assert total(rank, phase) > 0, phase
    assert analyze(read(cb)).efficiency.conventions.exact.flops_per_step == 1e6


def test_figures_reach_loggers_at_the_log_interval_only(tmp_path: Path) -> None:
    cb = callback()
    logger = CSVLogger(tmp_path)
    models.trainer(tmp_path, [cb], max_steps=20, logger=logger, log_every_n_steps=5).fit(
        models.Tiny(), models.token_loader(20)
    )
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    logged = {int(row["step"]): float(row["effprof/mfu"]) for row in rows if row.get("effprof/mfu")}
    assert list(logged) == [4, 9, 14, 19]
    assert {int(row["step"]) for row in rows if row.get("loss")} == {4, 9, 14, 19}
    assert all(0 < value < 1 for value in logged.values())


def test_log_metrics_lets_other_callbacks_monitor(tmp_path: Path) -> None:
    saver = ModelCheckpoint(
        tmp_path / "best", monitor="effprof/tokens_per_s_per_device", mode="max", every_n_train_steps=5
    )
    models.trainer(
        tmp_path, [callback(log_metrics=True), saver], max_steps=10, log_every_n_steps=5, enable_checkpointing=True
    ).fit(models.Tiny(), models.token_loader(10))
    assert saver.best_model_score is not None
    assert float(saver.best_model_score) > 0


def test_the_progress_bar_shows_mfu_and_tokens_and_is_given_back(tmp_path: Path) -> None:
    trainer = models.trainer(tmp_path, [callback()], max_steps=10, log_every_n_steps=5, enable_progress_bar=True)
    seen: list[dict[str, Any]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(trainer.progress_bar_callback.get_metrics(trainer, pl_module))

    trainer.callbacks.append(Look())
    start = trainer.profiler.start
    trainer.fit(models.Tiny(), models.token_loader(10))
    assert "mfu" not in seen[0]
    assert seen[-1]["mfu"].endswith("%")
    assert float(seen[-1]["tok/s"].replace(",", "")) > 0
    assert "get_metrics" not in vars(trainer.progress_bar_callback)
    assert trainer.profiler.start == start


def test_the_users_own_profiler_goes_on_working(tmp_path: Path) -> None:
    trainer = models.trainer(tmp_path, [callback()], max_steps=10, profiler="simple")
    trainer.fit(models.Tiny(), models.token_loader(10))
    report = trainer.profiler.summary()
    assert "train_dataloader_next" in report
    assert "start" not in vars(trainer.profiler)


def test_fast_dev_run_and_two_fits_of_one_callback(tmp_path: Path) -> None:
    cb = callback()
    models.trainer(tmp_path, [cb], fast_dev_run=3).fit(models.Tiny(), models.token_loader(5), models.token_loader(5))
    first = cb.run_dir
    assert rank_of(cb).steps == 3
    models.trainer(tmp_path, [cb], max_steps=4).fit(models.Tiny(), models.token_loader(5))
    assert cb.run_dir != first
    assert rank_of(cb).steps == 4


def test_resuming_into_the_same_run_dir_is_a_second_attempt(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=5, save_top_k=-1)
    models.trainer(tmp_path, [callback(run_dir=run_dir), saver], max_steps=7, enable_checkpointing=True).fit(
        models.Tiny(), models.token_loader(30)
    )
    saved = next((tmp_path / "saved").glob("*step=5*"))
    cb = callback(run_dir=run_dir)
    models.trainer(tmp_path, [cb], max_steps=10).fit(models.Tiny(), models.token_loader(30), ckpt_path=str(saved))
    run = read(cb)
    assert [attempt.ranks[0].columns["step"].tolist() for attempt in run.attempts] == [
        list(range(1, 8)),
        list(range(6, 11)),
    ]
    began = [
        event.data["step"] for attempt in run.attempts for event in attempt.ranks[0].events if event.name == "began"
    ]
    assert began == [0, 5]
    result = analyze(run)
    assert result.run.attempts == 2
    assert result.account.lines["lost_steps"] > 0


class Failing(models.Tiny):
    error: type[BaseException] = RuntimeError

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if index == 5:
            raise self.error("the loss is gone")
        return super().training_step(batch, index)


@pytest.mark.parametrize(("error", "seen"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, SystemExit)])
def test_an_exception_in_training_closes_the_log_and_is_passed_on(
    tmp_path: Path, error: type[BaseException], seen: type[BaseException]
) -> None:
    module = Failing()
    module.error = error
    cb = callback()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(seen):
        models.trainer(tmp_path, [cb], max_steps=10).fit(module, models.token_loader(10))
    signal.signal(signal.SIGINT, before)
    rank = rank_of(cb)
    assert rank.steps == 5
    assert rank.end is not None
    assert rank.end.status == "failed"
    assert error.__name__ in rank.end.reason
    assert analyze(read(cb)).run.ended == "failed"


def test_what_cannot_be_counted_is_said_with_the_argument_that_helps(tmp_path: Path) -> None:
    class Black(torch.nn.Module):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            values = ids.float().numpy()  # a fake tensor has no values to show
            return self.net(torch.from_numpy(values).long())

    module = models.Tiny()
    module.net = Black(module.net)
    cb = callback()
    with pytest.warns(UserWarning, match="flops_per_step="):
        models.trainer(tmp_path, [cb], max_steps=4).fit(module, models.token_loader(5))
    result = analyze(read(cb))
    assert result.efficiency.mfu.value is None
    assert any("flops_per_step=" in warning.message for warning in result.warnings)
    assert result.efficiency.tokens_per_s is not None


def test_given_values_override_what_is_found(tmp_path: Path) -> None:
    cb = callback(flops_per_step=2e6, peak_tflops=0.5, tokens_fn=lambda batch: 7)
    models.trainer(tmp_path, [cb], max_steps=5).fit(models.Tiny(), models.token_loader(5))
    run = read(cb)
    assert set(run.attempts[0].ranks[0].columns["tokens"]) == {7}
    result = analyze(run)
    assert result.efficiency.conventions.exact.flops_per_step == 2e6
    assert result.efficiency.mfu.peak_flops_per_s == 0.5e12


def test_errors_of_effprof_never_reach_the_training(tmp_path: Path) -> None:
    def broken(batch: Any) -> int:
        raise ValueError("not my batch")

    cb = callback(tokens_fn=broken)
    trainer = models.trainer(tmp_path, [cb], max_steps=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(models.Tiny(), models.token_loader(6))
    assert trainer.global_step == 6
    assert rank_of(cb).steps == 6

    (tmp_path / "taken").write_text("a file where the run directory should be")
    trainer = models.trainer(tmp_path, [callback(run_dir=tmp_path / "taken")], max_steps=6)
    with pytest.warns(UserWarning, match="training goes on"):
        trainer.fit(models.Tiny(), models.token_loader(6))
    assert trainer.global_step == 6


DDP_SCRIPT = """
import sys, torch
sys.path.insert(0, {models!r})
import tiny_lightning as models
from effprof.callbacks import EfficiencyCallback
if __name__ == "__main__":
    torch.set_num_threads(1)
    cb = EfficiencyCallback({run_dir!r}, telemetry={telemetry!r}, peak_tflops=0.1)
    trainer = models.trainer({root!r}, [cb], max_steps=12, strategy={strategy!r}, devices=2, log_every_n_steps=4)
    trainer.fit(models.Tiny(), models.token_loader(40))
    print("RUN", trainer.global_rank, cb.run_dir)
"""


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_ranks_write_one_run_without_a_collective(tmp_path: Path, strategy: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        DDP_SCRIPT.format(
            models=str(Path(models.__file__).parent),
            run_dir=None,
            root=str(tmp_path),
            strategy=strategy,
            telemetry=True,
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=240, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = list((tmp_path / "effprof_runs").iterdir())
    assert len(runs) == 1
    run = open_run(str(runs[0]))
    ranks = run.attempts[0].ranks
    assert [rank.header.rank for rank in ranks] == [0, 1]
    assert [rank.header.data_parallel_rank for rank in ranks] == [0, 1]
    assert [rank.steps for rank in ranks] == [12, 12]
    assert len(run.attempts[0].nodes) == 1
    result = analyze(run)
    assert result.run.world_size == 2
    assert result.efficiency.tokens_per_step == 2 * models.ROWS * models.LENGTH
    assert result.efficiency.conventions.exact.flops_per_step == pytest.approx(
        2 * models.ROWS * models.LENGTH * models.FLOPS_PER_TOKEN
    )


def test_both_lightning_packages_run_the_same_class(tmp_path: Path) -> None:
    script = f"""
import importlib.util, torch, lightning.pytorch as pl
from effprof.callbacks import EfficiencyCallback
import sys
assert "pytorch_lightning" not in sys.modules
class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 8)
    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
cb = EfficiencyCallback(peak_tflops=0.1, telemetry=False)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(40, 8)), batch_size=4)
pl.Trainer(max_steps=8, callbacks=[cb], accelerator="cpu", logger=False, enable_checkpointing=False,
           enable_progress_bar=False, default_root_dir={str(tmp_path)!r}).fit(Net(), data)
assert isinstance(cb, pl.Callback)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = open_run(str(next((tmp_path / "effprof_runs").iterdir())))
    assert run.record.framework == "lightning.pytorch"
    assert run.attempts[0].ranks[0].steps == 8
    # samples, not tokens: Linear 8x8 forward and weight gradient; the batch itself needs no gradient
    assert analyze(run).efficiency.conventions.exact.flops_per_step == 2 * 2 * 4 * 8 * 8
    assert json.loads((Path(run.path) / "run.json").read_text())["schema"] == "effprof.run/1"
