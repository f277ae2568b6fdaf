"""All rules over one run: what to change first, and what could not be judged."""

from __future__ import annotations

from typing import Annotated

import msgspec

from effprof.advise.calibration import Calibration
from effprof.advise.registry import all_rules
from effprof.advise.rule import Missing
from effprof.advise.verified import verified_findings
from effprof.analysis.model import Analysis, Finding, NotEvaluated

SCHEMA = "effprof.recommend/1"
# How much of a likely gain a risk leaves when findings are put in order.
RISK_WEIGHTS = {"low": 1.0, "medium": 0.7, "high": 0.4}
REPORT = "please report it"
IN_NO_LOG = "another tool's log does not say: `effprof run -- python train.py` or EfficiencyCallback record it"
OPTION = "--model"  # what some rules lack can be given on the command line
ORDER = "apply the first, then measure again before the next: gains do not add up"


def _says(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class Recommendations(msgspec.Struct, kw_only=True):
    """What `effprof recommend` answers."""

    schema: Annotated[str, _says("names this document's keys")] = SCHEMA
    run: Annotated[str, _says("id of the run")]
    path: Annotated[str, _says("its directory")]
    findings: Annotated[list[Finding], _says("by likely gain per risk, the one to apply first at the top")]
    order: Annotated[str, _says("how to use the list")] = ORDER
    not_evaluated: Annotated[list[NotEvaluated], _says("rules that this run's record could not answer")]
    silent: Annotated[list[str], _says("rules that were evaluated, or do not apply, and found nothing")]


def recommend(analysis: Analysis, calibration: Calibration | None = None) -> Recommendations:
    """Every rule's findings for a run, in the order in which to try them.

    Args:
        calibration: what earlier trials on this machine showed; without one, gains are as the rules predict them.
    """
    findings: list[Finding] = []
    missing: list[NotEvaluated] = []
    silent: list[str] = []
    for rule in all_rules():
        try:
            found = rule.apply(analysis)
        except Missing as error:
            is_own = analysis.source is None or OPTION in error.record
            missing.append(NotEvaluated(rule=rule.id, missing=error.what, record=error.record if is_own else IN_NO_LOG))
            continue
        except Exception as error:  # one rule's defect, or a third party's, must not take the analysis away
            missing.append(NotEvaluated(rule=rule.id, missing=f"its defect mended: {error!r}", record=REPORT))
            continue
        findings += found
        if not found:
            silent.append(rule.id)
    if calibration is not None:
        findings = [calibration.adjust(finding) for finding in findings]
    good = {name for name, verification in verified_findings(analysis.run.path).items() if verification.is_good}
    findings = [msgspec.structs.replace(each, verified=True) if each.id in good else each for each in findings]
    return Recommendations(
        run=analysis.run.id,
        path=analysis.run.path,
        findings=sorted(findings, key=_rank),
        not_evaluated=missing,
        silent=silent,
    )


def _rank(finding: Finding) -> tuple[float, str]:
    return -finding.gain.likely * RISK_WEIGHTS[finding.risk_level], finding.id
