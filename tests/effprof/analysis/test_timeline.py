"""The run over time: bins that keep spikes, events at their time, readings as rates, ranks side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effprof.analysis.timeline import MAX_BINS, band, bin_means, build_timeline, step_edges
from effprof.analysis.timeline_events import MAX_PER_KIND
from effprof.analysis.timeline_model import Timeline, TimelineEvent
from effprof.analysis.timeline_readings import MAX_DEVICES, MEMORY_BINS
from effprof.runlog.reader import open_run
from effprof.runlog.schema import Event, Memory, Probe, Telemetry

ORIGIN_NS = 5_000_000_000_000


def timeline(run: Any, peak: float | None = 1e9) -> Timeline:
    return build_timeline(open_run(str(run.path)), peak_flops_per_s=peak)


def of_kind(found: Timeline, kind: str) -> list[TimelineEvent]:
    return [event for event in found.events if event.kind == kind]


def test_a_single_slow_step_among_many_stays_in_sight(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "spike").record()
    run.rank([run.step(0.5 if n == 7_777 else 0.1) for n in range(10_000)])
    found = timeline(run)
    assert len(found.at_s) == MAX_BINS
    assert max(high for high in found.step_time_s.high if high is not None) == 0.5
    assert sum(high == 0.5 for high in found.step_time_s.high) == 1
    assert set(found.step_time_s.median) == {0.1}
    place = found.step_time_s.high.index(0.5)
    assert found.first_step[place] <= 7_778 <= found.last_step[place]
    assert found.first_step[0] == 1
    assert found.last_step[-1] == 10_000
    assert all(after == before + 1 for before, after in zip(found.last_step, found.first_step[1:], strict=False))


def test_few_steps_are_bins_of_their_own(simple_run: Any) -> None:
    found = timeline(simple_run)
    assert len(found.at_s) == 100
    assert found.step_time_s.low == found.step_time_s.median == found.step_time_s.high
    assert found.step_time_s.median[0] == pytest.approx(1.0)
    assert found.wall_s == pytest.approx(2.0 + 1.0 + 9.9 + 3.0)
    assert found.at_s[0] == pytest.approx(3.0)
    assert found.at_s[-1] == pytest.approx(12.9)
    assert found.is_steady[-1]
    assert not found.is_steady[0]


def test_rates_and_mfu_are_those_of_the_steps(simple_run: Any) -> None:
    found = timeline(simple_run)
    assert found.tokens_per_s is not None
    assert found.tokens_per_s.median[5] == pytest.approx(400.0)
    assert found.mfu[5] == pytest.approx(0.41)
    assert found.mfu[0] == pytest.approx(0.041)
    assert timeline(simple_run, peak=None).mfu == []
    # above the peak there is no share, here as anywhere
    assert timeline(simple_run, peak=1e8).mfu[1] is None


def test_phases_are_seconds_per_step_and_sum_to_it(simple_run: Any) -> None:
    found = timeline(simple_run)
    assert set(found.phases_s) == {"input_wait", "forward", "backward", "optimizer"}
    assert found.phases_s["backward"][3] == pytest.approx(0.05)
    for place, seconds in enumerate(found.step_time_s.median):
        assert sum(values[place] or 0.0 for values in found.phases_s.values()) == pytest.approx(seconds)


def test_tokens_that_were_not_counted_give_no_rate(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "none").record()
    run.rank([run.step(tokens=None) for _ in range(20)])
    assert timeline(run).tokens_per_s is None


def test_a_loss_in_the_log_is_carried(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "loss").record()
    rows = [run.step() for _ in range(30)]
    run.rank(rows)
    assert timeline(run).loss is None
    path = run.path / "attempt-000" / "rank-00000.ndjson"
    losses = [round(3.0 - 0.1 * n, 3) for n in range(30)]
    path.write_text(path.read_text().replace('"columns":{', f'"columns":{{"loss":{losses},', 1))
    found = timeline(run)
    assert found.loss is not None
    assert found.loss.median[0] == 3.0
    assert found.loss.median[-1] == 0.1


def test_attempts_do_not_share_a_bin(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "resumed").record()
    run.rank([run.step(0.01) for _ in range(1_001)], end=None)
    run.rank([run.step(0.01) for _ in range(1_000)], attempt=1, start_s=100.0, first_step=901)
    found = timeline(run)
    assert len(found.at_s) <= MAX_BINS
    change = found.attempt.index(1)
    assert set(found.attempt[:change]) == {0}
    assert set(found.attempt[change:]) == {1}
    assert found.last_step[change - 1] == 1_001
    assert found.first_step[change] == 901
    assert found.at_s[change] > 100
    assert [event.at_s for event in of_kind(found, "attempt")] == [0.0, 100.0]
    [ended] = of_kind(found, "ended")
    assert ended.label == "attempt 0: no closing line"


@pytest.mark.parametrize(("steps", "attempts"), [(0, 1), (1, 1), (5, 5), (600, 1), (601, 1), (5_000, 40), (900, 700)])
def test_edges_cover_every_step_once_in_few_bins(steps: int, attempts: int) -> None:
    attempt = np.sort(np.arange(steps) % attempts)
    edges = step_edges(attempt, MAX_BINS)
    if steps == 0:
        assert len(edges) == 0
        return
    assert edges[0] == 0
    assert edges[-1] == steps
    assert (np.diff(edges) > 0).all()
    assert len(edges) - 1 <= MAX_BINS


def test_bins_of_nothing_are_null() -> None:
    values = np.array([1.0, np.nan, np.nan, np.nan, 4.0, 2.0])
    edges = np.array([0, 2, 4, 6])
    found = band(values, edges)
    assert (found.low, found.median, found.high) == ([1.0, None, 2.0], [1.0, None, 3.0], [1.0, None, 4.0])
    assert bin_means(values, edges) == [1.0, None, 3.0]


def test_phases_inside_and_outside_of_steps_are_events_at_their_time(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "events").record()
    steps = [run.step(0.1) for _ in range(50)]
    steps[20]["evaluation"] = 1.5  # done before the first batch of the 21st step
    steps[30]["checkpoint"] = 0.002  # too short to be seen
    run.rank(steps, tail=[("checkpoint", 2.0)])
    found = timeline(run)
    [startup] = of_kind(found, "startup")
    assert (startup.at_s, startup.until_s) == (0.0, 2.0)
    [evaluation] = of_kind(found, "evaluation")
    assert evaluation.at_s == pytest.approx(2.0 + 20 * 0.1, abs=1e-3)
    assert evaluation.until_s == pytest.approx(2.0 + 20 * 0.1 + 1.5, abs=1e-3)
    assert evaluation.label == "evaluation before step 21"
    [checkpoint] = of_kind(found, "checkpoint")
    assert checkpoint.until_s == pytest.approx(found.wall_s)
    assert [event.at_s for event in found.events] == sorted(event.at_s for event in found.events)


def test_warnings_are_told_once_by_the_rank_that_saw_them_first(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "warned").record()
    for rank, second in ((0, 4), (1, 3)):
        lines = [Event(name="warning", monotonic_ns=ORIGIN_NS + second * 10**9, message="slow", data={"code": "c"})]
        run.rank([run.step()] * 30, rank=rank, world_size=2, lines=lines)
    [event] = of_kind(timeline(run), "warning")
    assert (event.at_s, event.source, event.label) == (3.0, "rank 1", "c: slow")


def test_many_events_are_cut_to_the_longest_and_counted(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "many").record()
    steps = [{**run.step(0.1), "evaluation": 0.1 + 0.001 * n} for n in range(500)]
    found = timeline(run.rank(steps))
    kept = of_kind(found, "evaluation")
    assert len(kept) == MAX_PER_KIND
    assert found.events_total == {"evaluation": 500}
    assert min((event.until_s or 0) - event.at_s for event in kept) > 0.3


def throttled(run: Any, values: list[dict[str, float | None]]) -> list[TimelineEvent]:
    samples = [Telemetry(monotonic_ns=ORIGIN_NS + n * 10**9, values=one) for n, one in enumerate(values)]
    run.rank([run.step()] * 100)
    run.node([Probe(probe="nvidia", readings={"throttle_power_cap_s": {"unit": "s", "kind": "counter"}})], samples)
    return of_kind(timeline(run), "throttling")


def test_throttling_comes_from_counters_of_time(tmp_path: Path, hand_made: Any) -> None:
    seconds = [0.0, 0.0, 0.5, 1.4, 1.401, 1.401, 2.0, 0.0, 0.0]  # 2 s on end, a second later one more, then a reset
    values = [{"GPU-1.throttle_power_cap_s": value, "GPU-1.throttle_mask": 0x20} for value in seconds]
    first, second = throttled(hand_made(tmp_path / "run").record(), values)
    assert (first.at_s, first.until_s, first.label, first.source) == (1.0, 3.0, "power cap", "node 0: GPU-1")
    assert (second.at_s, second.until_s) == (5.0, 6.0)


def test_throttling_comes_from_the_mask_where_nothing_counts(tmp_path: Path, hand_made: Any) -> None:
    masks = [0x1, 0x1, 0x40, 0x41, 0x0, 0x2]  # idle, idle, heat, heat and idle, nothing, application clocks
    values = [{"GPU-1.throttle_mask": value, "GPU-1.throttle_power_cap_s": None} for value in masks]
    [event] = throttled(hand_made(tmp_path / "run").record(), values)
    assert (event.at_s, event.until_s, event.label) == (2.0, 3.0, "hw thermal")


def test_memory_of_all_ranks_is_one_band(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "memory").record()
    for rank in range(3):
        lines = [
            Memory(
                monotonic_ns=ORIGIN_NS + n * 10**8,
                step=n,
                allocated_bytes=1_000 * (rank + 1),
                device_total_bytes=10_000,
                device_free_bytes=4_000 + (5_000 if n != 1_234 else 0),
            )
            for n in range(2_000)
        ]
        run.rank([run.step()] * 20, rank=rank, world_size=3, lines=lines)
    found = {series.name: series for series in timeline(run).memory}
    assert set(found) == {"allocated_bytes", "device_used_bytes"}
    allocated = found["allocated_bytes"]
    assert len(allocated.at_s) == MEMORY_BINS
    assert (set(allocated.low), set(allocated.median), set(allocated.high)) == ({1_000.0}, {2_000.0}, {3_000.0})
    assert allocated.source == "3 ranks"
    assert max(found["device_used_bytes"].high) == 6_000  # one sample of 2,000


def test_gauges_stay_and_counters_become_rates(tmp_path: Path, hand_made: Any) -> None:
    readings = {
        "power_w": {"unit": "W", "kind": "gauge"},
        "energy_j": {"unit": "J", "kind": "counter"},
        "memory_total_bytes": {"unit": "bytes", "kind": "gauge"},
    }
    energy = [100.0, 400.0, 900.0, 0.0, 200.0]  # reset in between
    samples = [
        Telemetry(
            monotonic_ns=ORIGIN_NS + n * 10**9,
            values={"gpu.0.power_w": 300.0 + n, "gpu.0.energy_j": value, "gpu.0.memory_total_bytes": 8},
        )
        for n, value in enumerate(energy)
    ]
    run = hand_made(tmp_path / "run").record()
    run.rank([run.step()] * 60).node([Probe(probe="p", readings=readings)], samples)
    found = {series.name: series for series in timeline(run).telemetry}
    assert set(found) == {"power_w", "energy_j"}
    assert found["power_w"].source == "gpu.0"
    assert found["power_w"].median == [300, 301, 302, 303, 304]
    assert found["power_w"].at_s == [0, 1, 2, 3, 4]
    assert found["energy_j"].unit == "W"
    assert found["energy_j"].median == [300, 500, 200]
    assert found["energy_j"].at_s == [1, 2, 4]


def test_many_devices_are_one_band(tmp_path: Path, hand_made: Any) -> None:
    count = MAX_DEVICES + 1
    samples = [
        Telemetry(monotonic_ns=ORIGIN_NS + n * 10**9, values={f"GPU-{i}.power_w": 100.0 * i for i in range(count)})
        for n in range(3)
    ]
    run = hand_made(tmp_path / "run").record()
    run.rank([run.step()] * 60).node([Probe(probe="p", readings={"power_w": {"unit": "W"}})], samples)
    [series] = timeline(run).telemetry
    assert series.source == f"{count} devices"
    assert (series.low[0], series.median[0], series.high[0]) == (0.0, 400.0, 800.0)


def test_ranks_lie_side_by_side(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "ranks").record()
    for rank in range(3):
        slow = rank == 2
        steps = [
            run.step(0.1, **({"input_wait": 0.06, "backward": 0.0} if slow and n >= 100 else {})) for n in range(200)
        ]
        run.rank(steps, rank=rank, world_size=3)
    found = timeline(run).ranks
    assert found is not None
    assert found.ranks == [0, 1, 2]
    assert len(found.at_s) == 120
    assert found.values_s["input_wait"][2][-1] == pytest.approx(0.06)
    assert found.values_s["input_wait"][2][0] == pytest.approx(0.01)
    assert found.values_s["input_wait"][0][-1] == pytest.approx(0.01)
    assert found.values_s["step"][0] == pytest.approx([0.1] * 120)
    assert (found.first_step[0], found.last_step[-1]) == (1, 200)


def test_a_thousand_ranks_get_fewer_bins(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "ranks").record()
    steps = [run.step()] * 100
    for rank in range(500):
        run.rank(steps, rank=rank, world_size=500)
    found = timeline(run).ranks
    assert found is not None
    assert len(found.ranks) == 500
    assert len(found.at_s) == 80


def test_a_run_without_steps_has_a_timeline_of_events(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "none").record().rank([], end="failed")
    found = timeline(run)
    assert found.at_s == []
    assert found.step_time_s.median == []
    assert [event.kind for event in found.events] == ["attempt", "startup", "ended"]
    assert found.ranks is None
