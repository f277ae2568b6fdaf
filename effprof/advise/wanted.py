"""The finding that a person asks to have verified."""

from __future__ import annotations

from typing import Any

from effprof.advise.recommend import Recommendations
from effprof.advise.registry import find_rule
from effprof.analysis.model import Finding
from effprof.errors import EffprofError


def wanted_finding(found: Recommendations, name: str) -> Finding:
    """The finding of this name.

    Raises:
        EffprofError: the run does not have it: says whether there is such a rule, and what it lacks.
    """
    for finding in found.findings:
        if finding.id == name:
            return finding
    find_rule(name)
    missing = next((each for each in found.not_evaluated if each.rule == name), None)
    if missing is not None:
        raise EffprofError(f"{name}: not evaluated, the run did not record {missing.missing}", missing.record)
    names = ", ".join(each.id for each in found.findings) or "none"
    raise EffprofError(f"{name}: not a finding of {found.path}", f"its findings: {names}")


def changes_of(finding: Finding) -> dict[str, Any]:
    """The changes of a finding that a trial can make.

    Raises:
        EffprofError: only a person can make this change, or trials are too short to show what it brings.
    """
    if finding.changes and finding.gain.basis == "steady":
        return dict(finding.changes)
    if finding.changes:
        raise EffprofError(
            f"{finding.id}: its gain is of the whole wall clock, and a trial is some seconds of steps",
            "make the change, run again and hold both runs against each other with effprof compare",
        )
    knob = " ".join(next(iter(finding.knobs.values()), finding.lever).split())
    raise EffprofError(f"{finding.id}: only a person can make this change: {finding.lever}", f"the knob: {knob}")
