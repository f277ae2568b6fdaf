"""The loss column: kept on the training thread, read later, never waited for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from effprof import StepProfiler
from effprof.measure.losses import LossRecord
from effprof.runlog.reader import open_run


def test_a_step_s_loss_is_the_mean_or_the_sum_of_its_micro_batches() -> None:
    for takes_mean, expected in ((True, 2.0), (False, 4.0)):
        record = LossRecord(takes_mean=takes_mean)
        for value in (1.0, 3.0):
            assert record.add(0, torch.tensor(value, requires_grad=True) * 1) is False
        record.add(1, torch.tensor(5.0))
        assert record.poll(until=1) == [(0, {"loss": expected})]
        assert record.poll(until=1) == []
        assert record.poll(until=2) == [(1, {"loss": 5.0})]


def test_no_graph_is_kept_alive() -> None:
    record = LossRecord()
    weight = torch.ones(3, requires_grad=True)
    record.add(0, (weight * 2).sum())
    assert record._kept[0][1].grad_fn is None


def test_what_is_no_loss_is_passed_over() -> None:
    record = LossRecord()
    for value in (None, 1.5, {"loss": 1}, torch.ones(3), torch.nn.Parameter(torch.tensor(1.0))):
        assert record.add(0, value) is False
    assert record.poll(until=1) == []
    assert record.facts() == {}


def test_a_loss_that_is_not_finite_is_counted_and_said_once() -> None:
    told: list[int] = []
    record = LossRecord(on_not_finite=told.append)
    for sequence, value in enumerate((1.0, math.nan, math.inf, 2.0)):
        record.add(sequence, torch.tensor(value))
    assert record.poll(until=4) == [(0, {"loss": 1.0}), (1, {}), (2, {}), (3, {"loss": 2.0})]
    assert told == [1]
    assert record.facts() == {"losses_recorded": 4, "losses_not_finite": 2}


def test_skipped_steps_follow_from_the_scaler() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    record = LossRecord()
    record.scale = lambda: scaler._scale
    for sequence, factor in enumerate((1.0, math.inf, math.inf, 1.0)):
        loss = (weight * factor).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        record.add(sequence, torch.tensor(1.0))
        if sequence != 1:  # both falls between two looks are told apart by their size
            record.poll(until=sequence + 1)
    assert record.facts()["skipped_steps_at_least"] == 2
    assert record.facts()["grad_scale"] == 256.0


def test_losses_of_a_plain_loop_are_in_the_log(tmp_path: Path) -> None:
    profiler = StepProfiler(run_dir=tmp_path / "run", telemetry=False, peak_tflops=0.1, accumulate=2)
    for index, _ in enumerate(profiler.watch([torch.ones(2, 3)] * 40)):
        profiler.record_loss(torch.tensor(float(index)))
    profiler.close()
    run = open_run(str(tmp_path / "run"))
    assert run.attempts[0].ranks[0].columns["loss"].tolist() == [2 * step + 0.5 for step in range(20)]
    assert run.record.config["losses_recorded"] == 20
    assert run.record.config["accumulate"] == 2
    assert run.record.config["input_shapes"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_losses_on_a_device_arrive_late_and_in_groups() -> None:
    record = LossRecord()
    for sequence in range(40):
        assert record.add(sequence, torch.tensor(float(sequence), device="cuda", dtype=torch.bfloat16)) is True
        record.end_step()
    record.send()
    arrived = dict(record.poll(until=40, wait=True))
    assert np.array_equal([arrived[sequence]["loss"] for sequence in range(40)], np.arange(40.0))


def test_losses_that_travel_in_one_copy_come_back_to_their_steps() -> None:
    record = LossRecord(takes_mean=False)
    record.scale = lambda: torch.tensor(8.0)
    # what `add` keeps of losses on a device; host tensors pass through the copies as they are
    for sequence, value in ((0, 1.0), (0, 2.0), (1, 5.0)):
        record._waiting.append((sequence, torch.tensor(value, dtype=torch.bfloat16)))
    record.send()
    assert record._waiting == []
    assert record.poll(until=2) == [(0, {"loss": 3.0}), (1, {"loss": 5.0})]
    assert record.facts()["grad_scale"] == 8.0


def test_losses_wait_until_there_are_enough_of_them() -> None:
    record = LossRecord()
    record.end_step()
    record._waiting.append((0, torch.tensor(1.0)))
    record.end_step()  # the first one has waited for ever
    assert record.poll(until=1) == [(0, {"loss": 1.0})]
    record._copied_ns = 1 << 62
    for sequence in range(1, 17):
        record._waiting.append((sequence, torch.tensor(1.0)))
        assert len(record._waiting) == sequence
        record.end_step()
    assert record._waiting == []
    assert len(record.poll(until=17)) == 16
