"""The rules as a document: what each looks for, why its limit lies there, and how its promises came true here."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from effprof.advise.calibration import Calibration
from effprof.advise.published import PublishedChange, published_changes
from effprof.advise.registry import all_rules
from effprof.advise.rule import AREAS, Rule
from effprof.errors import EffprofError

SCHEMA = "effprof.rules/1"


def _says(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class ListedThreshold(msgspec.Struct, kw_only=True):
    """A limit and why it lies there."""

    metric: Annotated[str, _says("path in the analysis, or the name of a figure made from it")]
    relation: Annotated[str, _says("`>`, `<`, `>=` or `<=`: how a run with the symptom compares")]
    value: float
    unit: str
    reason: str


class ListedTrials(msgspec.Struct, kw_only=True):
    """How a rule's promises came true in trials on this machine."""

    trials: int = 0
    confirmed: int = 0
    obtained_per_predicted: Annotated[
        float | None, _says("median of obtained ÷ likely gain over the trials; null without any")
    ] = None


class PublishedSpread(msgspec.Struct, kw_only=True):
    """Published gains of the same kind of change: context, never this run's prediction by themselves."""

    pairs: int
    low: Annotated[float, _says("lower quartile")]
    median: float
    high: Annotated[float, _says("upper quartile")]


class ListedRule(msgspec.Struct, kw_only=True):
    """One rule."""

    id: str
    area: str
    title: str
    symptom: str
    thresholds: list[ListedThreshold]
    lever: str
    knobs: Annotated[dict[str, str], _says("framework: form of the knob")]
    gain_basis: Annotated[str, _says("how the gain is predicted")]
    published: Annotated[PublishedSpread | None, _says("null where no pair of this kind is in the table")] = None
    risk: str
    risk_level: str
    sources: list[str]
    calibration: Annotated[ListedTrials, _says("on this machine")]


class Rules(msgspec.Struct, kw_only=True):
    """What `effprof rules` answers."""

    schema: Annotated[str, _says("names this document's keys")] = SCHEMA
    rules: Annotated[list[ListedRule], _says("by area")]


def list_rules(which: str | None = None, calibration: Calibration | None = None) -> Rules:
    """All rules, those of an area, or one.

    Raises:
        EffprofError: `which` is neither an area nor a rule.
    """
    known = all_rules()
    chosen = [rule for rule in known if which is None or which in (rule.id, rule.area)]
    if not chosen and which not in AREAS:
        raise EffprofError(
            f"{which}: neither an area nor a rule", f"areas are: {', '.join(AREAS)}; `effprof rules` lists the rules"
        )
    return Rules(rules=[_listed(rule, calibration or Calibration()) for rule in chosen])


def published_pairs(change: str) -> list[PublishedChange]:
    """The published pairs of a kind of change."""
    return [each for each in published_changes() if change and each.change == change]


def spread(change: str) -> PublishedSpread | None:
    """Quartiles of the published gains of a kind of change; None without any."""
    gains = [pair.speed_ratio - 1 for pair in published_pairs(change)]
    if not gains:
        return None
    low, median, high = (float(value) for value in np.quantile(gains, [0.25, 0.5, 0.75]))
    return PublishedSpread(pairs=len(gains), low=low, median=median, high=high)


def _listed(rule: Rule, calibration: Calibration) -> ListedRule:
    return ListedRule(
        id=rule.id,
        area=rule.area,
        title=rule.title,
        symptom=rule.symptom,
        thresholds=[
            ListedThreshold(
                metric=each.metric, relation=each.relation, value=each.value, unit=each.unit, reason=each.reason
            )
            for each in rule.thresholds
        ],
        lever=rule.lever,
        knobs=dict(rule.frameworks),
        gain_basis=rule.gain_basis,
        published=spread(rule.change),
        risk=rule.risk,
        risk_level=rule.risk_level,
        sources=list(rule.sources),
        calibration=_trials(rule.id, calibration),
    )


def _trials(name: str, calibration: Calibration) -> ListedTrials:
    trials = calibration.trials.get(name, [])
    ratios = [each.obtained / each.predicted.likely for each in trials if each.predicted.likely > 0]
    return ListedTrials(
        trials=len(trials),
        confirmed=sum(each.verdict == "confirmed" for each in trials),
        obtained_per_predicted=float(np.median(ratios)) if ratios else None,
    )
