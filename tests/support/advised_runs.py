"""Hand-made runs read the way `effprof recommend` reads them, for the tests of rules."""

from __future__ import annotations

from typing import Any

from effprof.advise.registry import find_rule
from effprof.analysis.analyze import examine
from effprof.analysis.model import Analysis, Finding
from effprof.cli.advice import with_timeline
from effprof.runlog.reader import open_run
from effprof.runlog.schema import Probe, Telemetry

CPU = {"type": "cpu", "index": 0, "name": "Xeon"}
NOW_S = 1_760_100_000.0


def analysed(run: Any) -> Analysis:
    """The analysis of a run's directory, with the run over time."""
    record = open_run(str(run.path))
    return with_timeline(record, examine(record, now_s=NOW_S))


def found(run: Any, rule: str) -> Finding | None:
    """What a rule finds in a run; None where it stays silent."""
    findings = find_rule(rule).apply(analysed(run))
    return findings[0] if findings else None


def host_load(run: Any, percent: float) -> Any:
    """The run with telemetry of its host's processors."""
    reading = {"cpu_percent": {"unit": "percent", "scope": "host", "kind": "gauge"}}
    samples = [Telemetry(monotonic_ns=n, values={"host.cpu_percent": percent}) for n in range(3)]
    return run.node([Probe(probe="cpu", readings=reading)], samples)


def assert_bounded(finding: Finding) -> None:
    """Low ≤ likely ≤ high ≤ bound, and nothing is promised to get slower."""
    gain = finding.gain
    assert 0 <= gain.low <= gain.likely <= gain.high <= gain.bound
