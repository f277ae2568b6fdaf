"""Events are cut from what stands around them, whatever brackets strings, arguments and other lists hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effprof.trace.stream import EventStream

EVENT = {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 1.0, "dur": 2.0, "pid": 0, "tid": 7, "args": {"stream": 7}}


def read(path: Path, text: str) -> tuple[list[str], EventStream]:
    path.write_text(text)
    stream = EventStream(str(path))
    return [event.name for group in stream.groups() for event in group], stream


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"deviceProperties": [{"id": 0, "name": "NVIDIA H100"}]},
        {"note": '{"a": [{}]}', "lists": [[{}], [{"x": [{}]}], [{}], [{}]]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_lists_behind_the_events_are_no_events(tmp_path: Path, frame: dict[str, Any], indent: int | None) -> None:
    named = [{**EVENT, "name": name} for name in ("a", '"}]', "}] ,", "c\\")]
    nested = {**EVENT, "name": "last", "args": {"Input Dims": [{"x": [{"y": 1}]}]}}
    document = {"schemaVersion": 1, "traceEvents": [*named, nested], **frame}
    names, stream = read(tmp_path / "trace.json", json.dumps(document, indent=indent))
    assert names == ["a", '"}]', "}] ,", "c\\", "last"]
    assert not stream.is_truncated
    assert {key: stream.frame[key] for key in frame} == frame
    assert stream.events == 5


def test_a_bracket_in_the_last_string_of_a_cut_file_ends_nothing(tmp_path: Path) -> None:
    whole = json.dumps({"traceEvents": [EVENT, {**EVENT, "name": "b}] }], [{}]"}]})
    cut = whole[: whole.rindex("[{}]") + 3]
    names, stream = read(tmp_path / "trace.json", cut)
    assert names == ["gemm"]
    assert stream.is_truncated
    assert stream.lost_bytes > 0
