"""MFU, throughput and their intervals on runs whose answers are known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effprof.analysis.analyze import analyze
from effprof.analysis.model import Analysis
from effprof.runlog.reader import open_run
from effprof.runlog.schema import FlopsRecord


def analyzed(run: Any, **options: Any) -> Analysis:
    return analyze(open_run(str(run.path)), **options)


def codes(analysis: Analysis) -> list[str]:
    return [warning.code for warning in analysis.warnings]


def test_known_run(simple_run: Any) -> None:
    efficiency = analyzed(simple_run).efficiency
    # 40 tokens × 1 MFLOP + 1,000 pairs × 1 kFLOP in 0.1 s of a 1 GFLOP/s peak
    assert efficiency.mfu.value == pytest.approx(0.41)
    assert efficiency.mfu.ci95 == pytest.approx((0.41, 0.41))
    assert (efficiency.mfu.convention, efficiency.mfu.dtype) == ("exact", "bf16")
    assert (efficiency.mfu.peak_flops_per_s, efficiency.mfu.peak_source) == (1e9, "datasheet")
    assert efficiency.mfu_wall.value == pytest.approx(100 * 41e6 / 15.9 / 1e9, rel=1e-6)
    # a quarter of the model FLOPs again for recompute, 50 positions for 40 tokens
    assert efficiency.hfu.value == pytest.approx(1.25 * (41e6 + 10e6) / 0.1 / 1e9)
    figures = efficiency.conventions
    assert figures.exact.flops_per_step == pytest.approx(41e6)
    assert figures.exact.flops_per_token == pytest.approx(41e6 / 40)
    assert [figures.megatron.mfu, figures.palm.mfu, figures.six_n.mfu] == pytest.approx([0.41, 0.42, 0.36])
    assert (efficiency.steps.total, efficiency.steps.steady, efficiency.steps.repeated) == (100, 99, 0)
    assert efficiency.tokens_per_step == 40
    assert efficiency.samples_per_step == 2
    assert efficiency.padding_share == pytest.approx(0.2)
    assert efficiency.loss_token_share == pytest.approx(0.95)
    assert efficiency.step_time_s.median == pytest.approx(0.1)
    assert efficiency.tokens_per_s.median == pytest.approx(400)
    assert efficiency.samples_per_s.median == pytest.approx(20)
    assert efficiency.model_flops_per_s_per_device.median == pytest.approx(4.1e8)


def test_data_parallel_ranks_add_up_and_ranks_that_share_a_batch_do_not(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    for rank in range(4):  # two data-parallel ranks of two tensor-parallel ranks each
        run.rank([run.step(0.1)] * 40, rank=rank, world_size=4, data_parallel_rank=rank // 2, data_parallel_size=2)
    efficiency = analyzed(run).efficiency
    assert efficiency.tokens_per_step == 80
    assert efficiency.conventions.exact.flops_per_step == pytest.approx(82e6)
    assert efficiency.mfu.value == pytest.approx(82e6 / 0.1 / 4e9)
    assert efficiency.tokens_per_s_per_device.median == pytest.approx(200)


def test_the_slowest_rank_decides(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1)] * 40, rank=0, world_size=2)
    run.rank([run.step(0.125)] * 40, rank=1, world_size=2)
    assert analyzed(run).efficiency.step_time_s.median == pytest.approx(0.125)


def test_a_delay_seen_by_ranks_in_turn_is_not_counted_twice(tmp_path: Path, hand_made: Any) -> None:
    # ranks that meet at every second step: 0.3 s for two steps, whoever waited in which of them
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.2 if n % 2 else 0.1) for n in range(80)], rank=0, world_size=2)
    run.rank([run.step(0.1 if n % 2 else 0.2) for n in range(80)], rank=1, world_size=2)
    efficiency = analyzed(run).efficiency
    assert efficiency.mfu.value == pytest.approx(2 * 41e6 / 0.15 / 2e9, rel=0.01)


def test_waiting_for_another_ranks_checkpoint_is_not_step_time(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    saving = {20: {"checkpoint": 5.0}}
    waiting = {20: {"backward": 5.05}}  # its 0.05 s and the 5 s that rank 0 is away
    run.rank([run.step(0.1, **saving.get(n, {})) for n in range(40)], rank=0, world_size=2)
    run.rank([run.step(0.1, **waiting.get(n, {})) for n in range(40)], rank=1, world_size=2)
    efficiency = analyzed(run).efficiency
    assert efficiency.mfu.value == pytest.approx(2 * 41e6 / 0.1 / 2e9, rel=1e-6)


def test_evaluation_and_checkpoint_inside_a_step_are_taken_out(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1, evaluation=1.0, checkpoint=0.5, logging=0.1, effprof=0.1) for _ in range(40)])
    efficiency = analyzed(run).efficiency
    assert efficiency.step_time_s.median == pytest.approx(0.1)
    assert efficiency.mfu.value == pytest.approx(0.41)
    assert (efficiency.mfu_wall.value or 1) < 0.03


def test_slow_steps_inside_the_run_count(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(1.0 if n in (60, 120) else 0.1) for n in range(200)])
    efficiency = analyzed(run).efficiency
    assert efficiency.steps.steady == 199
    assert efficiency.mfu.value == pytest.approx(199 * 41e6 / (197 * 0.1 + 2.0) / 1e9)
    low, high = efficiency.mfu.ci95 or (0, 0)
    assert low < 0.376 < high


def test_above_the_peak_is_refused_with_a_warning(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.03)] * 40)  # 1.37 times the peak
    analysis = analyzed(run)
    efficiency = analysis.efficiency
    assert efficiency.mfu.value is None
    assert efficiency.mfu.ci95 is None
    assert efficiency.hfu.value is None
    assert efficiency.conventions.exact.mfu is None
    # 137 % of the steady part over a longer wall clock is below 100 %, and just as wrong
    assert efficiency.mfu_wall.value is None
    assert "mfu_above_peak" in codes(analysis)
    assert any("137 %" in warning.message for warning in analysis.warnings)


def test_a_given_peak_replaces_the_recorded_one(simple_run: Any) -> None:
    share = analyzed(simple_run, peak_tflops=0.002).efficiency.mfu
    assert share.value == pytest.approx(0.205)
    assert share.peak_source == "given by --peak-tflops"
    assert share.dtype == "bf16"


def test_no_peak_names_what_supplies_it(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record(hardware={"name": "Mystery 9000"})
    run.rank([run.step()] * 40)
    analysis = analyzed(run)
    assert analysis.efficiency.mfu.value is None
    assert analysis.efficiency.conventions.exact.flops_per_step == pytest.approx(41e6)
    assert analysis.efficiency.model_flops_per_s_per_device.median == pytest.approx(4.1e8)
    [warning] = [warning for warning in analysis.warnings if warning.code == "no_peak"]
    assert "Mystery 9000" in warning.message
    assert "--peak-tflops" in warning.message


def test_no_flops_names_the_reason(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record(flops=FlopsRecord(reason="the model uses a custom kernel"))
    run.rank([run.step()] * 40)
    analysis = analyzed(run)
    assert analysis.efficiency.mfu.value is None
    assert analysis.efficiency.tokens_per_s.median == pytest.approx(400)
    [warning] = [warning for warning in analysis.warnings if warning.code == "no_flops"]
    assert warning.message.startswith("the model uses a custom kernel")
    assert "flops_per_step=" in warning.message


def test_doubts_about_the_flops_are_told(tmp_path: Path, hand_made: Any) -> None:
    flops = FlopsRecord(
        conventions={"exact": {"tokens": 1e6}},
        source="operation_count",
        reason="the module has layers that the config does not name",
        counts={"closed_form": 1.0e9, "operation_count": 1.1e9, "difference": 0.1},
        coverage=0.97,
        uncounted=["mylib::scan"],
        assumptions=["a data-dependent length was taken as 1"],
    )
    run = hand_made(tmp_path / "r").record(flops=flops)
    run.rank([run.step()] * 40)
    told = {warning.code: warning.message for warning in analyzed(run).warnings}
    assert "10.00 %" in told["flops_disagree"]
    assert "layers that the config does not name" in told["flops_disagree"]
    assert "mylib::scan" in told["flops_uncounted"]
    assert "97.0 %" in told["flops_uncounted"]
    assert "taken as 1" in told["flops_assumption"]
    flops.counts["difference"], flops.coverage, flops.uncounted, flops.assumptions = 0.0004, 1.0, [], []
    run.record(flops=flops)
    assert not [code for code in codes(analyzed(run)) if code.startswith("flops_")]


def test_no_token_counts_still_gives_samples(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([{"forward": 0.05, "samples": 8.0}] * 40)
    analysis = analyzed(run)
    assert analysis.efficiency.tokens_per_s.median is None
    assert analysis.efficiency.mfu.value is None
    assert analysis.efficiency.samples_per_s.median == pytest.approx(160)
    assert {"no_counts", "no_tokens"} <= set(codes(analysis))


def test_flops_on_samples_need_no_tokens(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record(flops=FlopsRecord(conventions={"exact": {"samples": 5e6}}, source="given"))
    run.rank([{"forward": 0.1, "samples": 8.0}] * 40)
    efficiency = analyzed(run).efficiency
    assert efficiency.mfu.value == pytest.approx(0.4)
    assert efficiency.conventions.exact.flops_per_token is None
    assert efficiency.conventions.six_n.mfu is None


def test_steps_that_were_not_counted_take_the_mean_and_it_is_said(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    unknown = dict.fromkeys(("samples", "positions", "tokens", "loss_tokens", "pairs", "square_pairs"))
    run.rank([run.step(0.1, **({} if n % 4 == 0 else unknown)) for n in range(80)])
    analysis = analyzed(run)
    assert analysis.efficiency.mfu.value == pytest.approx(0.41)
    [warning] = [warning for warning in analysis.warnings if warning.code == "tokens_sampled"]
    assert "75 %" in warning.message


def test_a_missing_ranks_log_does_not_halve_the_job(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 40, rank=1, world_size=2, data_parallel_size=2)
    analysis = analyzed(run)
    assert analysis.efficiency.mfu.value == pytest.approx(0.41)
    assert analysis.efficiency.tokens_per_step == 80
    [warning] = [warning for warning in analysis.warnings if warning.code == "missing_ranks"]
    assert "rank 0 of 2" in warning.message


def test_a_rank_stopped_before_its_first_step_counts_as_missing(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 40, rank=0, world_size=2, data_parallel_size=2, end=None)
    run.rank([], rank=1, world_size=2, data_parallel_size=2, end=None)
    analysis = analyzed(run)
    assert analysis.efficiency.steps.total == 40
    assert analysis.efficiency.mfu.value == pytest.approx(0.41)
    assert [rank.steps for rank in analysis.ranks] == [40, 0]
    assert "missing_ranks" in codes(analysis)


def test_ranks_that_do_not_know_whom_they_share_a_batch_with(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record(parallel={"data_parallel_size": 2})
    for rank in range(4):
        run.rank([run.step()] * 40, rank=rank, world_size=4, data_parallel_rank=None, data_parallel_size=None)
    analysis = analyzed(run)
    assert analysis.efficiency.tokens_per_step == 80
    assert "data_parallel_rank_unknown" in codes(analysis)


def test_steps_that_only_some_ranks_finished_are_left_out(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 40, rank=0, world_size=2)
    run.rank([run.step()] * 30, rank=1, world_size=2)
    analysis = analyzed(run)
    assert analysis.efficiency.steps.total == 30
    assert "ranks_differ" in codes(analysis)


def test_one_step_more_on_a_rank_is_how_a_kill_looks(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step()] * 40, rank=0, world_size=2, end=None)
    run.rank([run.step()] * 39, rank=1, world_size=2, end=None)
    assert "ranks_differ" not in codes(analyzed(run))


def test_two_steps_say_how_little_that_is(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record().rank([hand_made.step(), hand_made.step()])
    analysis = analyzed(run)
    assert analysis.efficiency.steps.steady == 1
    assert analysis.efficiency.mfu.value == pytest.approx(0.41)
    assert analysis.efficiency.mfu.ci95 is None
    assert "too_few_steps" in codes(analysis)


@pytest.mark.parametrize("steps", [0, 1])
def test_no_steady_step_is_no_figure_and_no_crash(tmp_path: Path, hand_made: Any, steps: int) -> None:
    run = hand_made(tmp_path / "r").record().rank([hand_made.step()] * steps)
    analysis = analyzed(run)
    assert analysis.efficiency.steps.total == steps
    assert analysis.efficiency.mfu.value is None
    assert analysis.efficiency.step_time_s.median is None
    assert "too_few_steps" in codes(analysis)


def test_a_cpus_peak_is_called_a_measured_ceiling(tmp_path: Path, hand_made: Any) -> None:
    peak = {"flops_per_s": 1e9, "dtype": "fp32", "source": "best of five GEMMs", "kind": "measured_ceiling"}
    run = hand_made(tmp_path / "r").record(hardware={"name": "Xeon", "peak": peak})
    run.rank([run.step()] * 40, device={"type": "cpu", "name": "Xeon"})
    share = analyzed(run).efficiency.mfu
    assert share.peak_kind == "measured_ceiling"
    assert share.peak_source == "measured ceiling: best of five GEMMs"


def test_an_elastic_change_of_the_number_of_devices(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record()
    for rank in (0, 1):
        run.rank([run.step(0.1)] * 40, rank=rank, world_size=2)
    run.rank([run.step(0.2)] * 40, attempt=1, start_s=10.0, first_step=41)
    analysis = analyzed(run)
    assert analysis.run.world_size == 1
    # 39 steps of 82 MFLOP on 2 devices for 0.1 s, 39 of 41 MFLOP on one for 0.2 s
    assert analysis.efficiency.mfu.value == pytest.approx(39 * (82e6 + 41e6) / (39 * (0.2 + 0.2)) / 1e9)
    assert len(analysis.efficiency.steps.rules) == 2


def test_intervals_hold_the_value(tmp_path: Path, hand_made: Any) -> None:
    rng = np.random.default_rng(0)
    run = hand_made(tmp_path / "r").record()
    run.rank([run.step(0.1 * float(1 + 0.05 * rng.standard_normal())) for _ in range(300)])
    efficiency = analyzed(run).efficiency
    for figure in (efficiency.mfu.value, efficiency.tokens_per_s.median, efficiency.step_time_s.median):
        assert figure is not None
    for value, interval in (
        (efficiency.mfu.value, efficiency.mfu.ci95),
        (efficiency.tokens_per_s.median, efficiency.tokens_per_s.ci95),
        (efficiency.step_time_s.median, efficiency.step_time_s.ci95),
    ):
        low, high = interval or (0.0, 0.0)
        assert low < (value or 0) < high
        assert (high - low) / (value or 1) < 0.03
    assert (efficiency.tokens_per_s.p5 or 0) < (efficiency.tokens_per_s.median or 0)
