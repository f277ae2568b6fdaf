"""Every byte at the peak in one line, predictions beside the measured peak, and what a failure left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effprof.analysis.analyze import analyze
from effprof.analysis.memory import measure_memory
from effprof.reports import markdown, terminal
from effprof.runlog.reader import Run, open_run
from effprof.runlog.schema import Event

GIB = 2**30
STATES = {"parameters_bytes": 4 * GIB, "gradients_bytes": 4 * GIB, "optimizer_bytes": 8 * GIB}
CPU = {"type": "cpu", "name": "Xeon"}


def opened(run: Any) -> Run:
    return open_run(str(run.path))


def rehearsed(**at_peak: int) -> dict[str, Any]:
    peak = STATES["parameters_bytes"] + STATES["optimizer_bytes"] + sum(at_peak.values())
    return {
        "fake_copy": {
            "kept_bytes": 9 * GIB,
            "device_peak_bytes": peak,
            "step_peak_at": "backward",
            "at_peak": {f"{name}_bytes": size for name, size in at_peak.items()},
        },
        "reasons": {"closed_form": "no config"},
    }


def test_a_device_s_lines_sum_to_its_peak(tmp_path: Path, hand_made: Any) -> None:
    memory = rehearsed(gradients=GIB, activations=9 * GIB, temporary=3 * GIB)
    run = hand_made(tmp_path / "r").record(model=STATES, memory=memory)
    lines = [
        run.memory(
            peak_allocated_bytes=27 * GIB,
            peak_reserved_bytes=31 * GIB,
            reserved_bytes=30 * GIB,
            peak_inactive_split_bytes=GIB,
            device_free_bytes=48 * GIB,
            device_total_bytes=80 * GIB,
        )
    ]
    run.rank([run.step()] * 10, lines=lines)
    figures, warnings = measure_memory(opened(run))
    account = figures.account
    assert account is not None
    assert account.basis == "allocator"
    assert account.lines == {
        "parameters": 4 * GIB,
        "gradients": GIB,  # a first gradient, not all of them: that is how the rehearsal has it
        "optimizer": 8 * GIB,
        "activations": 11 * GIB,
        "temporary": 3 * GIB,
        "cached_free": 3 * GIB,
        "fragmentation": GIB,
        "non_torch": 2 * GIB,
        "other": 0,
    }
    assert account.peak_bytes == sum(account.lines.values()) == 33 * GIB
    assert (figures.gradients_bytes, figures.activations_bytes, figures.temporary_bytes) == (4 * GIB, 11 * GIB, 3 * GIB)
    [prediction] = figures.predictions
    assert prediction.ratio == pytest.approx(25 / 27)
    assert not warnings


def test_sharded_gradients_are_never_more_than_the_rank_holds(tmp_path: Path, hand_made: Any) -> None:
    memory = rehearsed(gradients=32 * GIB, activations=2 * GIB, temporary=GIB)
    run = hand_made(tmp_path / "r").record(model=STATES, memory=memory)
    run.rank([run.step()] * 10, lines=[run.memory(peak_allocated_bytes=20 * GIB, peak_reserved_bytes=20 * GIB)])
    account = measure_memory(opened(run))[0].account
    assert account is not None
    assert account.lines["gradients"] == 4 * GIB
    assert account.peak_bytes == sum(account.lines.values()) == 20 * GIB


def test_states_that_are_kept_elsewhere_leave_no_account(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record(model=STATES)
    run.rank([run.step()] * 10, lines=[run.memory(peak_allocated_bytes=9 * GIB, peak_reserved_bytes=9 * GIB)])
    figures, [warning] = measure_memory(opened(run))
    assert figures.account is None
    assert figures.activations_bytes is None
    assert warning.code == "memory_account"


def test_a_cpu_shows_predicted_tensors_within_the_process(tmp_path: Path, hand_made: Any) -> None:
    memory = rehearsed(gradients=GIB, activations=2 * GIB, temporary=GIB)
    run = hand_made(tmp_path / "r").record(model=STATES, memory=memory)
    lines = [run.memory(process_rss_bytes=18 * GIB, process_peak_rss_bytes=20 * GIB)]
    run.rank([run.step()] * 10, device=CPU, lines=lines)
    figures, warnings = measure_memory(opened(run))
    account = figures.account
    assert account is not None
    assert account.basis == "fake_copy"
    assert account.peak_bytes == sum(account.lines.values()) == 20 * GIB
    assert account.lines["other"] == 4 * GIB
    assert figures.predictions[0].ratio is None  # nothing to compare it with
    assert [warning.code for warning in warnings] == ["no_device_memory"]


def test_a_tracked_micro_batch_is_the_truth_on_a_cpu(tmp_path: Path, hand_made: Any) -> None:
    tracked = {
        "peak_bytes": 4 * GIB,
        "peak_gradients_bytes": GIB,
        "peak_activations_bytes": 3 * GIB,
        "peak_temporary_bytes": 0,
    }
    memory = {**rehearsed(gradients=GIB, activations=2 * GIB, temporary=GIB), "tracked": tracked}
    run = hand_made(tmp_path / "r").record(model=STATES, memory=memory)
    run.rank([run.step()] * 10, device=CPU, lines=[run.memory(process_peak_rss_bytes=20 * GIB)])
    figures, _ = measure_memory(opened(run))
    assert figures.tracked_bytes == 16 * GIB
    assert figures.predictions[0].ratio == pytest.approx(1.0)
    assert figures.account is not None
    assert figures.account.basis == "tracker"
    assert figures.account.lines["activations"] == 3 * GIB


def test_pages_that_were_never_touched_do_not_break_the_sum(tmp_path: Path, hand_made: Any) -> None:
    memory = rehearsed(gradients=GIB, activations=2 * GIB, temporary=GIB)
    run = hand_made(tmp_path / "r").record(model=STATES, memory=memory)
    run.rank([run.step()] * 10, device=CPU, lines=[run.memory(process_peak_rss_bytes=GIB)])
    account = measure_memory(opened(run))[0].account
    assert account is not None
    assert account.peak_bytes == sum(account.lines.values()) == 16 * GIB
    assert "other" not in account.lines


def test_without_a_prediction_its_reasons_are_told(tmp_path: Path, hand_made: Any) -> None:
    reasons = {"closed_form": "no config", "fake_copy": "the step needs values"}
    run = hand_made(tmp_path / "r").record(model=STATES, memory={"reasons": reasons, "fake_copy": None})
    run.rank([run.step()] * 10, device=CPU, lines=[run.memory(process_rss_bytes=GIB)])
    figures, warnings = measure_memory(opened(run))
    assert figures.predictions == []
    assert [warning.message for warning in warnings[:2]] == [
        "memory, closed form: no config",
        "memory, fake copy: the step needs values",
    ]


def test_what_filled_the_memory_is_in_the_analysis_and_both_reports(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "r").record(model=STATES)
    data = {
        **STATES,
        "requested_bytes": 2 * GIB,
        "has_gradients": False,
        "largest": [["(8, 4096, 128256) float32", 2, 30 * GIB], ["broken"]],
    }
    event = Event(
        name="out_of_memory", monotonic_ns=5_000_003_500_000_000, message="OutOfMemoryError: CUDA\x1b[31m", data=data
    )
    lines = [run.memory(allocated_bytes=70 * GIB, reserved_bytes=78 * GIB, device_free_bytes=GIB, ooms=1), event]
    run.rank([run.step()] * 10, lines=lines, end="failed", reason="OutOfMemoryError")
    analysis = analyze(opened(run))
    failure = analysis.memory.out_of_memory
    assert failure is not None
    assert failure.states_bytes == 12 * GIB
    assert (failure.allocated_bytes, failure.reserved_bytes, failure.requested_bytes) == (70 * GIB, 78 * GIB, 2 * GIB)
    assert [(group.number, group.bytes) for group in failure.largest] == [(2, 30 * GIB)]
    for text in (terminal.render(analysis), markdown.render(analysis)):
        plain = text.replace("\\", "")
        assert "2.0 GiB asked for" in plain
        assert "states 12.0 GiB" in plain
        assert "\x1b" not in text
