"""The shapes in which profilers write the same trace: all must give the same account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from traces import annotation, copy, document, kernel, launch, write

from effprof.errors import EffprofError
from effprof.trace import stream
from effprof.trace.account import account_traces
from effprof.trace.summary import RankKernels

UNIX_US = 1661203463029566
EVENTS = [
    annotation("ProfilerStep#7", UNIX_US, 400),
    launch(1, UNIX_US, 5),
    kernel("ampere_sgemm_128x64_nn", UNIX_US + 20, 50, correlation=1),
    launch(2, UNIX_US + 6, 5),
    kernel("ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)", UNIX_US + 60, 60, correlation=2, stream=21),
    copy(UNIX_US + 110, 30, bytes=4096),
    {**copy(UNIX_US + 150, 10, name="Memset (Device)"), "cat": "gpu_memset"},
]
EXPECTED = {
    "window_s": 140,
    "compute_s": 50,
    "communication_s": 60,
    "communication_exposed_s": 50,
    "memory_copy_s": 40,
    "memory_copy_exposed_s": 30,
    "idle_s": 10,
}


def account(path: str) -> RankKernels:
    (found,) = account_traces(path).ranks.values()
    return found


def in_us(one: RankKernels) -> dict[str, float]:
    return {key: round(getattr(one, key) * 1e6, 2) for key in EXPECTED}


def changed(**changes: Any) -> list[dict[str, Any]]:
    """The events with some fields put through a function."""
    return [{key: changes[key](value) if key in changes else value for key, value in event.items()} for event in EVENTS]


@pytest.mark.parametrize(
    "content",
    [
        document(EVENTS),
        EVENTS,  # the bare list of the Chrome format
        {"traceEvents": EVENTS, "distributedInfo": {"rank": 0}},  # the frame behind
        document(changed(ts=float)),
        document(changed(ts=lambda ts: ts * 1000, dur=lambda dur: dur * 1000)),  # nanoseconds
        document(changed(ts=lambda ts: f"{ts}.000", dur=float)),  # Ascend writes the time as text
        document(changed(tid=str, pid=str)),
        document(changed(cat=lambda cat: {"kernel": "Kernel", "gpu_memcpy": "Memcpy", "gpu_memset": "Memset",
                                          "cuda_runtime": "Runtime"}.get(cat, cat))),  # PyTorch 1.8 to 1.12
        document([*EVENTS, {"ph": "f", "id": 1, "pid": 0, "tid": 7, "ts": 1, "cat": "ac2g", "name": "ac2g"},
                  {"ph": "X", "cat": "gpu_user_annotation", "name": "ProfilerStep#7", "ts": UNIX_US, "dur": 9e6},
                  {"name": "Record Window End", "ph": "i", "s": "g", "pid": "", "tid": "", "ts": UNIX_US},
                  {"name": "process_name", "ph": "M", "ts": 1, "pid": 1, "tid": 0, "args": {"name": "python3"}}]),
    ],
    ids=["object", "list", "frame-behind", "float", "nanoseconds", "text", "text-ids", "old-categories", "others"],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_one_trace_in_many_forms(tmp_path: Path, content: Any, indent: int | None, name: str) -> None:
    found = account(write(tmp_path / name, content, indent=indent))
    assert in_us(found) == EXPECTED
    assert [step.step for step in found.steps] == [7]
    assert found.copies["set"].count == 1


def test_digits_of_text_times_are_kept(tmp_path: Path) -> None:
    events = [kernel("a_gemm", 0, 0.125), kernel("a_gemm", 0, 0.25)]
    events[0]["ts"], events[1]["ts"] = "1717575960208020.125", "1717575960208020.500"
    found = account(write(tmp_path / "t.json", events))
    assert found.window_s == pytest.approx(0.625e-6, rel=1e-9)
    assert found.idle_s == pytest.approx(0.25e-6, rel=1e-9)


def test_ascend_tells_kinds_by_process(tmp_path: Path) -> None:
    def task(name: str, start: float, duration: float, pid: int, kind: str = "") -> dict[str, Any]:
        args = {"Task Type": kind} if kind else {}
        return {"ph": "X", "name": name, "pid": pid, "tid": 1, "ts": f"{start:.3f}", "dur": duration, "args": args}

    def process(pid: int, name: str) -> dict[str, Any]:
        return {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}

    content = [
        process(1, "Python"), process(9, "Overlap Analysis"),
        task("ProfilerStep#3", 0, 500, 1), task("aten::add", 0, 400, 1),
        task("aclnnMatmul_MatMulV2_MatMulV2", 100, 50, 4, "AI_CORE"),
        task("Notify_Wait", 90, 300, 4, "NOTIFY_WAIT_SQE"), task("EVENT_WAIT", 90, 300, 4),
        task("hcom_allReduce__606_0_1", 140, 60, 5), task("Reduce_Inline", 141, 5, 5),
        task("MEMCPY_ASYNC", 210, 10, 4, "MEMCPY_ASYNC"),
        task("Computing", 0, 1000, 9), task("Free", 0, 1000, 9),
        process(4, "Ascend Hardware"), process(5, "Communication"),
    ]  # fmt: skip
    found = account(write(tmp_path / "trace_view.json", content))
    assert in_us(found) == {
        "window_s": 120, "compute_s": 50, "communication_s": 60, "communication_exposed_s": 50,
        "memory_copy_s": 10, "memory_copy_exposed_s": 10, "idle_s": 10,
    }  # fmt: skip
    assert set(found.kernels) == {"gemm", "communication.all_reduce"}
    assert [step.step for step in found.steps] == [3]


@pytest.mark.parametrize(
    ("frame", "name", "rank"),
    [
        ({"distributedInfo": {"rank": 12}}, "x.json", 12),
        ({"distributedInfo": {"rank": "12", "backend": "nccl"}}, "x.json", 12),
        ({"distributedInfo": {"rank": 2}}, "rank-5.json", 2),
        ({}, "trace_rank-5.json", 5),
        ({}, "x.json", 0),
        ({"distributedInfo": {}}, "x.json", 0),
        ({"distributedInfo": "?"}, "x.json", 0),
    ],
)
def test_rank(tmp_path: Path, frame: dict[str, Any], name: str, rank: int) -> None:
    assert list(account_traces(write(tmp_path / name, document(EVENTS, **frame))).ranks) == [rank]


@pytest.mark.parametrize("group_bytes", [200, 1000, 5000])
def test_cuts_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int) -> None:
    """Names that look like boundaries, nested objects and lists: a cut within them never counts."""
    traps = ['}, {"ph": "X"', '"}, {', "\\", '\\"', "}\n,\n{", "[{},{}]", "ü" * 5, '"traceEvents": [']
    events = []
    for index in range(300):
        event = kernel(f"gemm {traps[index % len(traps)]} {index}", index * 10, 5, correlation=index)
        event["args"]["nested"] = [{"a": {}}, {"b": [{"c": traps[index % len(traps)]}, {}]}, {}]
        event["args"]["grid"] = [1, 2, 3]
        events.append({"args": event.pop("args"), **event})  # arguments first: another } before a comma
    monkeypatch.setattr(stream, "GROUP_BYTES", group_bytes)
    for indent in (None, 1):
        found = account(write(tmp_path / f"t{indent}.json", document(events), indent=indent))
        assert found.events == 300
        assert found.compute_s == pytest.approx(1500e-6)


def test_values_that_are_no_json_are_repaired(tmp_path: Path) -> None:
    text = json.dumps(document(EVENTS)).replace('"bytes": 4096', '"memory bandwidth (GB/s)": inf, "x": -nan')
    path = write(tmp_path / "t.json", text.encode().replace(b"ampere_sgemm", b"ampere_\xff\xfesgemm\x01"))
    found = account(path)
    assert in_us(found) == EXPECTED
    assert found.kernels["gemm"].count == 1


def test_events_of_other_shapes_are_left_out_and_said(tmp_path: Path) -> None:
    odd: list[Any] = [
        {"ph": "X", "cat": "kernel", "name": 5, "ts": 1, "dur": 1},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": None, "dur": 1},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": UNIX_US, "dur": -5},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": UNIX_US},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": "soon", "dur": "long"},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": [1], "dur": {}},
    ]
    found = account_traces(write(tmp_path / "t.json", document([*EVENTS, *odd])))
    assert in_us(found.ranks[0]) == EXPECTED
    (problem,) = found.problems
    assert problem.code == "trace_events_skipped"
    assert "6 events" in problem.message
    strange = kernel("a_gemm", UNIX_US, 3)
    strange["args"] = {"correlation": {"a": 1}, "bytes": "many", "Process Group Ranks": [[]]}
    assert account(write(tmp_path / "s.json", document([strange]))).kernels["gemm"].count == 1


def test_garbage_times_do_not_stretch_the_window(tmp_path: Path) -> None:
    found = account_traces(write(tmp_path / "t.json", document([*EVENTS, kernel("gemm", 0, 5)])))
    assert in_us(found.ranks[0]) == EXPECTED
    assert [problem.code for problem in found.problems] == ["trace_clock"]


def test_a_folder_without_traces(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"hidden_size": 5})
    with pytest.raises(EffprofError, match="no profiler trace"):
        account_traces(str(tmp_path))
    with pytest.raises(EffprofError, match="no such file"):
        account_traces(str(tmp_path / "missing.json.gz"))


def test_a_trace_in_an_object_store(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://traces/t.json", "wb") as file:
        file.write(json.dumps(document(EVENTS)).encode())
    assert in_us(account("memory://traces/t.json")) == EXPECTED
