"""Findings that can be verified, and what is said of those that can't."""

from __future__ import annotations

from typing import Any

import pytest

from effprof.advise.recommend import Recommendations
from effprof.advise.wanted import changes_of, wanted_finding
from effprof.analysis.model import Finding, Gain, NotEvaluated
from effprof.errors import EffprofError


def finding(basis: str = "steady", **changes: Any) -> Finding:
    return Finding(
        id="in-workers",
        area="input",
        title="waits",
        evidence=[],
        lever="use workers",
        knobs={"pytorch": "DataLoader(\n  num_workers=2)"},
        gain=Gain(low=0.1, likely=0.2, high=0.3, bound=0.4, basis=basis),
        memory_effect_bytes=None,
        risk="",
        sources=[],
        changes=changes,
    )


def test_a_finding_gives_its_changes() -> None:
    assert changes_of(finding(num_workers=2)) == {"num_workers": 2}


def test_what_only_a_person_can_do_shows_the_knob() -> None:
    with pytest.raises(EffprofError) as caught:
        changes_of(finding())
    assert "only a person can make this change: use workers" in caught.value.message
    assert caught.value.hint == "the knob: DataLoader( num_workers=2)"


def test_a_gain_of_the_whole_wall_clock_is_not_tried() -> None:
    with pytest.raises(EffprofError, match="whole wall clock"):
        changes_of(finding(basis="wall", num_workers=2))


def test_a_finding_that_is_not_there_is_explained() -> None:
    missing = NotEvaluated(rule="in-pinned", missing="the setting `pin_memory`", record="train again")
    found = Recommendations(run="a", path="runs/a", findings=[finding()], not_evaluated=[missing], silent=[])
    assert wanted_finding(found, "in-workers").id == "in-workers"
    with pytest.raises(EffprofError, match="no such rule"):
        wanted_finding(found, "in-nothing")
    with pytest.raises(EffprofError, match="the run did not record the setting `pin_memory`") as caught:
        wanted_finding(found, "in-pinned")
    assert caught.value.hint == "train again"
