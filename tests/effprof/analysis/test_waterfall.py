"""The waterfall closes to the last digit whatever was recorded, and each bar says what it was made from."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effprof.analysis.analyze import analyze
from effprof.analysis.clocks import Derating, peak_clock_mhz
from effprof.analysis.model import ACCOUNT_LINES, Account, Analysis, Efficiency
from effprof.analysis.waterfall import Facts, make_waterfall
from effprof.runlog.reader import open_run
from effprof.runlog.schema import FlopsRecord, Kernels, Probe, RunRecord, Telemetry
from effprof.trace.summary import Family, Idle, RankKernels

ORIGIN_NS = 5_000_000_000_000  # as in conftest


def bars_of(analysis: Analysis) -> dict[str, float]:
    return {bar.name: bar.share for bar in analysis.waterfall}


def assert_closes(analysis: Analysis) -> None:
    used = analysis.efficiency.mfu_wall.value
    assert used is not None
    assert sum(bar.share for bar in analysis.waterfall) == pytest.approx(1 - used, abs=1e-12)
    assert all(bar.share >= 0 for bar in analysis.waterfall)
    for bar in analysis.waterfall:
        assert bar.seconds == pytest.approx(bar.share * analysis.account.wall_s)


def test_a_host_only_run_says_what_is_not_split(simple_run: Any) -> None:
    # 2 s start-up, a step of 1 s, 99 of 0.1 s, 3 s checkpoint; 41 MFLOP a step against 1 GFLOP/s
    result = analyze(open_run(str(simple_run.path)))
    assert_closes(result)
    bars, wall_s = bars_of(result), 15.9
    assert result.efficiency.mfu_wall.value == pytest.approx(4.1 / wall_s)
    assert bars["startup"] == pytest.approx(2 / wall_s)
    assert bars["checkpoint"] == pytest.approx(3 / wall_s)
    assert bars["input_wait"] == pytest.approx(1.09 / wall_s)
    assert bars["optimizer"] == pytest.approx(1.09 / wall_s)
    assert bars["recompute"] == pytest.approx(0.25 * 4.1 / wall_s)
    # 10 of 50 positions are padding; with recompute they cost 1.25 times 10 × 1 MFLOP a step
    assert bars["padding"] == pytest.approx(100 * 12.5e6 / 1e9 / wall_s)
    # forward and backward took 0.8 of 10.9 s; what they made is used, recomputed or padding
    assert bars["forward_backward"] == pytest.approx((0.8 * 10.9 - 4.1 - 1.025 - 1.25) / wall_s)
    recompute = next(bar for bar in result.waterfall if bar.name == "recompute")
    assert {one.metric: one.value for one in recompute.evidence}["run.flops.recompute_share"] == 0.25


def test_goodput_and_the_account_are_one_table(simple_run: Any) -> None:
    result = analyze(open_run(str(simple_run.path)))
    assert result.goodput.value == pytest.approx(10.9 / 15.9)
    assert result.goodput.value + sum(result.goodput.lost.values()) == pytest.approx(1.0)
    assert result.goodput.lost["checkpoint"] == pytest.approx(3 / 15.9)


def test_no_bars_without_a_peak(hand_made: Any, tmp_path: Any) -> None:
    run = hand_made(tmp_path / "run").record(hardware={"name": "unknown"})
    run.rank([run.step() for _ in range(20)])
    result = analyze(open_run(str(run.path)))
    assert result.waterfall == []
    assert any(warning.code == "no_peak" for warning in result.warnings)


def test_repeated_steps_are_a_bar_and_no_goodput(hand_made: Any, tmp_path: Any) -> None:
    run = hand_made(tmp_path / "run").record()
    run.rank([run.step() for _ in range(40)], end=None)
    run.rank([run.step() for _ in range(40)], attempt=1, start_s=10.0, first_step=21)
    result = analyze(open_run(str(run.path)))
    assert_closes(result)
    bars = bars_of(result)
    # 6 s of the first attempt, a gap of 4 s, 2 s start-up and 4 s of steps: 20 of them made before
    assert bars["restart"] == pytest.approx(4 / 16)
    assert bars["lost_steps"] == pytest.approx(2 / 16)
    assert result.goodput.value == pytest.approx(6 / 16)


def kernels(lines: dict[str, float], **fields: Any) -> Kernels:
    facts: dict[str, Any] = {
        "monotonic_ns": ORIGIN_NS + 3_000_000_000,
        "first_step": 20,
        "steps": 3,
        "trigger": "schedule",
        "basis": "device",
        "window_s": sum(lines.values()),
        "lines": lines,
    }
    return Kernels(**{**facts, **fields})


WINDOW = {
    "step.forward": 0.06,
    "step.backward": 0.12,
    "step.optimizer": 0.03,
    "step.exposed_communication": 0.03,
    "step.pipeline_bubble": 0.015,
    "step.host_gap": 0.045,
}


def test_a_kernel_window_stands_for_the_steady_steps(hand_made: Any, tmp_path: Any) -> None:
    run = hand_made(tmp_path / "run").record(hardware={"peak": {"flops_per_s": 1e10}})
    families = {"gemm": 0.1, "attention": 0.05, "elementwise": 0.03, "optimizer": 0.03}
    run.rank([run.step(1.0), *(run.step() for _ in range(99))], lines=[kernels(WINDOW, families=families)])
    result = analyze(open_run(str(run.path)))
    assert result.account.basis == "kernel"
    assert_closes(result)
    lines = result.account.lines
    assert sum(lines.values()) == pytest.approx(result.account.wall_s, abs=1e-9)
    # 9.9 s of steady steps in the window's shares; the first step keeps the host's phases
    assert lines["step.exposed_communication"] == pytest.approx(9.9 * 0.1)
    assert lines["step.pipeline_bubble"] == pytest.approx(9.9 * 0.05)
    assert lines["step.host_gap"] == pytest.approx(9.9 * 0.15)
    assert lines["step.forward"] == pytest.approx(9.9 * 0.2 + 0.3)
    assert lines["step.input_wait"] == pytest.approx(0.1)
    bars = bars_of(result)
    computing_s = sum(lines[name] for name in ("step.forward", "step.backward", "step.optimizer"))
    assert bars["memory_bound_kernels"] * result.account.wall_s == pytest.approx(computing_s / 7)
    assert bars["exposed_communication"] == pytest.approx(9.9 * 0.1 / result.account.wall_s)
    assert "forward_backward" not in bars
    assert bars["low_efficiency_gemm"] > 0


def test_matmuls_of_recorded_shapes_are_held_against_the_roofline(hand_made: Any, tmp_path: Any) -> None:
    peak = {"flops_per_s": 989.4e12, "dtype": "bf16", "source": "datasheet", "kind": "datasheet"}
    run = hand_made(tmp_path / "run").record(
        flops=FlopsRecord(conventions={"exact": {"tokens": 1e11}}, source="closed_form", recompute_share=0.0),
        hardware={"name": "NVIDIA H100 80GB HBM3", "peak": peak},
    )
    # 100 TFLOP/s with 2.345e12 bytes/s: 70 % of the H100's 3.35e12 bytes/s, but 10.1 % of its FLOP/s
    gemm = Family(
        count=10,
        total_s=0.1,
        union_s=0.1,
        share=0.5,
        shaped_s=0.1,
        flops_per_s=100e12,
        bytes_per_s=2.345e12,
        dtypes={"bf16": 1.0},
    )
    account = RankKernels(
        window_s=0.3,
        compute_s=0.21,
        communication_s=0.0,
        communication_exposed_s=0.0,
        memory_copy_s=0.0,
        memory_copy_exposed_s=0.0,
        idle_s=0.09,
        idle=Idle(),
        kernels={"gemm": gemm},
    )
    window = kernels(WINDOW, families={"gemm": 0.1, "elementwise": 0.1}, account=msgspec.to_builtins(account))
    run.rank([run.step() for _ in range(100)], lines=[window])
    result = analyze(open_run(str(run.path)))
    assert_closes(result)
    assert result.kernel_account["0"].kernels["gemm"].roofline_share == pytest.approx(0.7)
    bars = {bar.name: bar for bar in result.waterfall}
    lines = result.account.lines
    computing = sum(lines[f"step.{name}"] for name in ("forward", "backward", "optimizer")) / result.account.wall_s
    assert bars["memory_bound_gemm"].share == pytest.approx(computing * 0.5 * (0.7 - 100 / 989.4))
    shown = {one.metric: one.value for one in bars["low_efficiency_gemm"].evidence}
    assert shown["gemm roofline_share"] == pytest.approx(0.7)
    assert shown["gemm achieved"] == 100e12


def test_profiled_steps_are_never_steady_and_their_excess_is_effprofs(hand_made: Any, tmp_path: Any) -> None:
    run = hand_made(tmp_path / "run").record()
    steps = [run.step() for _ in range(100)]
    for index in (20, 21, 22):
        steps[index] = run.step(0.3, profiled=None)
    # a mark is a count and no time
    marked = [{**step, "loss_tokens": 38.0} for step in steps]
    run.rank(marked, lines=[kernels(WINDOW)])
    path = run.path / "attempt-000" / "rank-00000.ndjson"
    written = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    number = 0
    for line in written:
        if line["type"] == "steps":
            line["columns"].pop("profiled_ns", None)
            line["columns"]["profiled"] = [1 if number + i in (20, 21, 22) else None for i in range(line["n"])]
            number += line["n"]
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in written))
    result = analyze(open_run(str(run.path)))
    assert result.efficiency.steps.profiled == 3
    assert result.efficiency.step_time_s.p95 == pytest.approx(0.1)
    assert result.efficiency.steps.total == 100
    assert result.efficiency.steps.steady == 96
    assert result.account.lines["effprof"] == pytest.approx(3 * 0.2)
    assert sum(result.account.lines.values()) == pytest.approx(result.account.wall_s, abs=1e-9)


def test_by_phase_shares_follow_the_host_s_phases(hand_made: Any, tmp_path: Any) -> None:
    run = hand_made(tmp_path / "run").record()
    by_phase = {"forward": {"step.forward": 0.02, "step.host_gap": 0.06}}
    window = kernels({"step.forward": 0.02, "step.host_gap": 0.06}, by_phase=by_phase, basis="operators")
    run.rank([run.step() for _ in range(101)], lines=[window])
    lines = analyze(open_run(str(run.path))).account.lines
    assert lines["step.host_gap"] == pytest.approx(0.75 * 100 * 0.03)
    assert lines["step.forward"] == pytest.approx(0.25 * 100 * 0.03 + 0.03)
    assert lines["step.backward"] == pytest.approx(101 * 0.05)  # a phase that the window lacks keeps its time


def test_operators_of_a_window_are_laid_on_the_other_steps(hand_made: Any, tmp_path: Any) -> None:
    run = hand_made(tmp_path / "run").record()
    by_phase = {"forward": {"step.forward": 0.02, "step.host_gap": 0.02}}
    window = kernels({"step.forward": 0.02, "step.host_gap": 0.02}, by_phase=by_phase, basis="operators")
    window.operators = {"count": 900.0, "own_s": 0.04, "dispatch_s": 2e-6, "fixed_s": 0.01}
    window.families = {"gemm": 0.02, "attention": 0.01, "elementwise": 0.01}
    run.rank([run.step() for _ in range(101)], lines=[window])
    analysis = analyze(open_run(str(run.path)))
    lines, found = analysis.account.lines, analysis.operators
    assert found is not None
    assert found.per_step == 900 / window.steps
    assert found.dispatch_s == 2e-6
    steps_s = sum(seconds for name, seconds in lines.items() if name.startswith("step."))
    computing = lines["step.forward"] + lines["step.backward"]
    assert found.fixed_share == pytest.approx((lines["step.host_gap"] + 0.25 * computing) / steps_s)
    assert found.product_share == pytest.approx(0.75 * computing / steps_s)


def test_clocks_below_boost_are_a_bar(hand_made: Any, tmp_path: Any) -> None:
    device = {"type": "cuda", "index": 0, "name": "NVIDIA H100 80GB HBM3", "compute_units": 132}
    peak = {"flops_per_s": 989.4e12, "dtype": "bf16", "source": "datasheet", "kind": "datasheet"}
    run = hand_made(tmp_path / "run").record(
        flops=FlopsRecord(conventions={"exact": {"tokens": 1e12}}, source="closed_form", recompute_share=0.0),
        hardware={"name": device["name"], "peak": peak},
    )
    run.rank([run.step() for _ in range(100)], device=device)
    samples = [
        Telemetry(
            monotonic_ns=ORIGIN_NS + second * 10**9,
            # cold before and after the steps: only what lies in them counts
            values={"GPU-1.sm_clock_mhz": 1465 if 2 < second <= 12 else 345, "GPU-1.sm_clock_max_mhz": 1980},
        )
        for second in range(15)
    ]
    run.node([Probe(probe="nvidia")], samples)
    result = analyze(open_run(str(run.path)))
    assert_closes(result)
    bar = next(bar for bar in result.waterfall if bar.name == "clock_derating")
    computing = sum(result.account.lines[f"step.{name}"] for name in ("forward", "backward", "optimizer"))
    expected = (1 - 1465 / 1829.945) * computing / result.account.wall_s
    assert bar.share == pytest.approx(expected, rel=1e-4)
    assert bar.evidence[0].threshold == pytest.approx(1829.945, abs=0.01)


@pytest.mark.parametrize(
    ("tflops", "units", "highest", "boost"),
    [(989.4, 132, 1980, 1830), (312, 108, 1410, 1410), (125, 80, 1530, 1526), (1307.4, 304, 2100, 2100)],
)
def test_boost_clocks_follow_from_datasheets(tflops: float, units: int, highest: float, boost: float) -> None:
    assert peak_clock_mhz(tflops * 1e12, units, highest) == pytest.approx(boost, abs=1)


def test_a_peak_that_no_clock_explains_gives_no_bar() -> None:
    assert peak_clock_mhz(989.4e12 * 0.6, 132, 1980) is None
    assert peak_clock_mhz(1e9, 132, 1980) is None


@given(
    seconds=st.lists(st.floats(0, 1e4), min_size=len(ACCOUNT_LINES), max_size=len(ACCOUNT_LINES)),
    used=st.floats(0, 1),
    recompute=st.none() | st.floats(0, 3),
    families=st.dictionaries(st.sampled_from(["gemm", "elementwise", "optimizer", "other"]), st.floats(0, 100)),
    derating=st.none() | st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_bars_close_for_any_account(
    seconds: list[float], used: float, recompute: float | None, families: dict[str, float], derating: float | None
) -> None:
    lines = dict(zip(ACCOUNT_LINES, seconds, strict=True))
    account = Account(basis="kernel", wall_s=sum(seconds), lines=lines)
    inside = sum(lines[name] for name in ACCOUNT_LINES if name.startswith("step."))
    if account.wall_s == 0 or used * account.wall_s > inside:
        used = 0.0 if account.wall_s == 0 else used * inside / account.wall_s
    efficiency = analysis_with(used)
    facts = Facts(recompute, families, Derating(derating, 1000.0, 1500.0, 9) if derating is not None else None)
    bars = make_waterfall(account, efficiency, facts)
    if account.wall_s == 0:
        assert bars == []
        return
    assert sum(bar.share for bar in bars) == pytest.approx(1 - used, abs=1e-9)
    assert all(bar.share >= -1e-9 for bar in bars)


def analysis_with(used: float) -> Efficiency:
    """An efficiency of which only `mfu_wall` matters here."""
    nothing: dict[str, Any] = {name: {} for name in ("exact", "megatron", "palm", "6n")}
    share: dict[str, Any] = {"value": None, "convention": "exact"}
    figures: dict[str, Any] = {
        "mfu": share,
        "mfu_wall": {"value": used},
        "hfu": share,
        "conventions": nothing,
        "steps": {"total": 1, "steady": 1},
        "tokens_per_step": None,
        "samples_per_step": None,
        "padding_share": None,
        "loss_token_share": None,
        "step_time_s": {},
    }
    rates = ("tokens_per_s", "tokens_per_s_per_device", "samples_per_s", "model_flops_per_s_per_device")
    return msgspec.convert({**figures, **{name: {} for name in rates}}, Efficiency)


def test_a_run_record_alone_gives_no_bars(hand_made: Any, tmp_path: Any) -> None:
    run = hand_made(tmp_path / "run")
    (run.path / "run.json").write_bytes(msgspec.json.encode(RunRecord(id="hand-made")))
    run.rank([])
    result = analyze(open_run(str(run.path)))
    assert result.waterfall == []
    assert result.goodput.value is None
