"""The phase clock tiles time without a gap; the recorder turns its ring into the log's columns."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from time import perf_counter_ns as now

import numpy as np
import pytest

from effprof.measure import clock as clock_module
from effprof.measure import recorder as recorder_module
from effprof.measure.clock import BACKWARD, EVALUATION, FORWARD, OPTIMIZER, OTHER, PHASE_BITS, PhaseClock
from effprof.measure.device_clock import DeviceClock
from effprof.measure.recorder import Recorder
from effprof.runlog.reader import RankLog, open_run
from effprof.runlog.schema import PHASES, End, Header, Memory, RunRecord, Span
from effprof.runlog.writer import RankWriter, write_run_record


def phase_sum(rank: RankLog) -> np.ndarray:
    return sum(np.nan_to_num(rank.columns[f"{name}_ns"]) for name in PHASES if f"{name}_ns" in rank.columns)


class Recording:
    """A clock and a recorder on a real log in `directory`."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        write_run_record(directory, RunRecord(id="r"))
        started = now()
        header = Header(
            run_id="r", role="rank", rank=0, monotonic_ns=started, wall_s=time.time(), process_start_s=time.time()
        )
        self.clock = PhaseClock(started, self._add_span)
        self.recorder = Recorder(RankWriter(directory / "attempt-000", header), self.clock, **settings)  # type: ignore[arg-type]

    def _add_span(self, phase: int, start_ns: int, end_ns: int) -> None:
        self.recorder.add(Span(name=PHASES[phase], start_ns=start_ns, end_ns=end_ns))

    def run_step(self, step: int) -> None:
        self.clock.switch(FORWARD)
        self.clock.switch(BACKWARD)
        self.clock.switch(OPTIMIZER)
        self.clock.micro_batches += 1
        self.clock.end_step(step)

    def read(self) -> RankLog:
        self.clock.end_steps()
        self.recorder.close(lambda: [End(status="completed", monotonic_ns=now())])
        return open_run(str(self.directory)).attempts[0].ranks[0]


def test_phases_sum_to_the_time_between_step_ends_to_the_nanosecond(tmp_path: Path) -> None:
    recording = Recording(tmp_path, switch_ns=300.0)
    recording.clock.begin_steps()
    for step in range(1, 301):
        recording.run_step(step)
    rank = recording.read()
    ends = rank.columns["end_ns"]
    assert rank.columns["step"].tolist() == list(range(1, 301))
    assert (phase_sum(rank)[1:] == np.diff(ends)).all()
    assert rank.columns["effprof_ns"].min() >= 0  # the switches' own cost was moved out of `other`, not added


def test_spans_and_steps_tile_the_time_from_taking_over_to_the_end(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    clock = recording.clock
    time.sleep(0.01)
    clock.switch(EVALUATION)  # Lightning's sanity check comes before the first step
    time.sleep(0.01)
    clock.begin_steps()
    for step in range(1, 11):
        recording.run_step(step)
    clock.switch(EVALUATION)
    time.sleep(0.01)
    rank = recording.read()
    spans = sum(span.end_ns - span.start_ns for span in rank.spans)
    assert rank.end is not None
    tail = rank.end.monotonic_ns - max(span.end_ns for span in rank.spans)
    total = rank.end.monotonic_ns - rank.header.monotonic_ns
    assert spans + phase_sum(rank).sum() + tail == total
    assert [span.name for span in rank.spans].count("evaluation") == 2
    assert tail < 50e6


def test_counters_are_null_where_a_micro_batch_was_not_counted(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    clock = recording.clock
    clock.begin_steps()
    for counts in ([{"tokens": 5, "positions": 8}, {"tokens": 6, "positions": 8}], [{"positions": 8}] * 2, [{}, None]):
        for micro_batch in counts:
            if micro_batch is not None:
                clock.add_counts(micro_batch)
            clock.micro_batches += 1
        clock.end_step(clock.head + 1)
    columns = recording.read().columns
    np.testing.assert_array_equal(columns["tokens"], [11, np.nan, np.nan])
    np.testing.assert_array_equal(columns["positions"], [16, 16, np.nan])
    assert "pairs" not in columns
    assert columns["micro_batches"].tolist() == [2, 2, 2]


def test_given_flops_are_a_steps_not_a_micro_batchs(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.clock.begin_steps()
    for _ in range(3):
        recording.clock.micro_batches += 1
    recording.clock.add_given_flops(4_000_000_000_000_000)
    recording.clock.end_step(1)
    assert recording.clock.take_sums()[0] == {"flops": 4e15}
    assert recording.read().columns["flops"].tolist() == [4e15]


def test_late_values_reach_their_step_and_halves_do_not(tmp_path: Path) -> None:
    arrivals: list[tuple[int, dict[str, int]]] = []

    def take() -> list[tuple[int, dict[str, int]]]:
        taken = arrivals.copy()
        arrivals.clear()
        return taken

    recording = Recording(tmp_path, late=(take,))
    recording.clock.begin_steps()
    for step in range(1, 4):
        for _ in range(2):
            recording.recorder.expect(step - 1)
        recording.run_step(step)
    arrivals += [(0, {"tokens": 3}), (1, {"tokens": 5}), (2, {"tokens": 8})]
    recording.recorder.flush(hold=True)  # every row still waits for its second half
    assert open_run(str(tmp_path)).attempts[0].ranks[0].steps == 0
    arrivals += [(0, {"tokens": 30}), (1, {"tokens": 50})]
    recording.recorder.flush(hold=True)
    assert recording.recorder.take_sums()[0] == {}  # step 2 is not known, so the sum over all three is not either
    np.testing.assert_array_equal(recording.read().columns["tokens"], [33, 55, np.nan])


def test_steps_are_on_disk_within_a_second_while_training_goes_on(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recording.clock.begin_steps()
    recording.run_step(1)
    deadline = time.monotonic() + 10
    while open_run(str(tmp_path)).attempts[0].ranks[0].steps == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    recording.read()


def test_steps_that_the_writer_never_fetched_are_given_up_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "PERIOD_S", 3600.0)
    monkeypatch.setattr(clock_module, "CAPACITY", 500)
    recording = Recording(tmp_path)
    recording.clock.begin_steps()
    for step in range(1, 601):
        recording.run_step(step)
    recording.recorder.flush()
    assert recording.recorder.dropped == 501
    rank = recording.read()
    assert rank.columns["step"].tolist() == list(range(502, 601))
    assert (phase_sum(rank)[1:] == np.diff(rank.columns["end_ns"])).all()


def test_live_figures_and_the_writer_may_ask_at_once(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    clock = recording.clock
    clock.begin_steps()
    seen = 0.0
    is_over = threading.Event()

    def flush() -> None:
        while not is_over.is_set():
            recording.recorder.flush(hold=True)

    other = threading.Thread(target=flush)
    other.start()
    for step in range(1, 3001):
        clock.switch(FORWARD)
        clock.add_counts({"tokens": 3})
        clock.micro_batches += 1
        clock.end_step(step)
        if step % 7 == 0:
            seen += clock.take_sums()[0].get("tokens", 0.0)
    seen += clock.take_sums()[0].get("tokens", 0.0)
    is_over.set()
    other.join()
    assert seen == 9000
    rank = recording.read()
    assert rank.columns["step"].tolist() == list(range(1, 3001))
    assert rank.columns["tokens"].sum() == 9000
    assert (phase_sum(rank)[1:] == np.diff(rank.columns["end_ns"])).all()


def test_a_full_disk_disables_the_log_and_says_so_once(tmp_path: Path) -> None:
    said: list[str] = []
    recording = Recording(tmp_path, on_problem=said.append)
    recording.clock.begin_steps()
    real = recording.recorder._writer
    recording.recorder._writer = RankWriter(
        tmp_path / "full", Header(run_id="r", role="rank", rank=0, monotonic_ns=0, wall_s=0, process_start_s=0)
    )
    import os

    descriptor = os.open("/dev/full", os.O_WRONLY)  # the kernel's own full disk
    os.dup2(descriptor, recording.recorder._writer._descriptor)
    for step in range(1, 4):
        recording.run_step(step)
        recording.recorder.flush()
    assert len(said) == 1
    assert "No space left" in said[0]
    recording.recorder.close(list)
    real.close()


def test_the_writer_thread_ends_with_close(tmp_path: Path) -> None:
    before = threading.active_count()
    recording = Recording(tmp_path, each_second=lambda: [Memory(monotonic_ns=now(), step=0)])
    assert threading.active_count() == before + 1
    recording.read()
    assert threading.active_count() == before


class ScriptedEvent:
    """Stands for a device event: there is no device here. Reached at the scripted device time, in ms."""

    device_ms = 0.0
    made = 0

    def __init__(self) -> None:
        ScriptedEvent.made += 1
        self.at = -1.0
        self.is_reached = False

    def record(self) -> None:
        self.at, self.is_reached = ScriptedEvent.device_ms, False

    def query(self) -> bool:
        return self.is_reached

    def elapsed_time(self, other: ScriptedEvent) -> float:
        return other.at - self.at


def test_device_time_is_split_by_launching_phase_and_read_only_when_reached() -> None:
    ScriptedEvent.made = 0
    clock = DeviceClock(ScriptedEvent, every_n_steps=2)
    assert [clock.is_sampled(sequence) for sequence in range(4)] == [True, False, True, False]
    for sequence in (2, 4):
        ScriptedEvent.device_ms = 10.0 * sequence
        clock.begin(OTHER)
        events = []
        for phase, spent_ms in ((OTHER, 1.0), (FORWARD, 2.0), (BACKWARD, 4.0), (OPTIMIZER, 0.5)):
            ScriptedEvent.device_ms += spent_ms if phase != OTHER else 0.0
            clock.mark(phase)
        ScriptedEvent.device_ms += 0.25
        clock.mark(OTHER)
        assert clock._marks is not None
        events = [event for _, event in clock._marks]
        clock.end(sequence)
        assert clock.poll() == []
        for event in events:
            event.is_reached = True
        assert clock.poll() == [
            (
                sequence,
                {
                    "device_forward_ns": 4_000_000,
                    "device_backward_ns": 500_000,
                    "device_optimizer_ns": 250_000,
                    "device_gap_ns": 2_000_000,
                },
            )
        ]
    assert ScriptedEvent.made == 6  # the second sampled step took its events from the pool
    clock.mark(FORWARD)  # a step that is not sampled records nothing
    assert ScriptedEvent.made == 6


def test_an_event_that_fails_ends_device_timing_and_nothing_else() -> None:
    class Broken(ScriptedEvent):
        def record(self) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    clock = DeviceClock(Broken, every_n_steps=1)
    clock.begin(OTHER)
    clock.mark(FORWARD)
    clock.end(0)
    assert clock.poll() == []
    assert "capturing" in clock.failure
    assert not clock.is_sampled(1)


def test_few_steps_and_many_are_added_up_alike() -> None:
    rng = np.random.default_rng(0)
    for steps in (1, 2, 3, 9):
        phases = rng.integers(0, len(PHASES), (steps, 7))
        phases[:, -1] = clock_module.END_OF_STEP
        changes = [clock_module.OTHER, *phases.ravel().tolist(), 3, 5]  # two more changes of a step that runs
        times = np.cumsum(rng.integers(1, 10**9, len(changes))).tolist()
        held = [time << PHASE_BITS | phase for time, phase in zip(times, changes, strict=True)]
        many, last = clock_module._add_up(held, steps)
        few, also_last = clock_module._add_up_few(held, steps)
        assert few == many.tolist()
        assert last == also_last == 7 * steps
        assert int(many[:, 6 : 6 + len(PHASES)].sum()) == times[last] - times[0]
