"""What a rule is: a pure function from an analysis to a match, with its thresholds, its lever and its sources.

A rule's function looks at one `Analysis` and returns

- `None`: the run does not have the symptom,
- a `Match`: it has it; the evidence, the gain and the knobs filled with this run's numbers,

and raises `Missing` where the run did not record what the rule needs (the accessors in `effprof.advise.facts` do so).
`NotApplicable` is for runs the rule has nothing to say about, such as a pipeline rule without a pipeline: silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from effprof.analysis.model import Analysis, Evidence, Finding, Gain

AREAS = (
    "batch",
    "parallelism",
    "moe",
    "precision",
    "memory",
    "kernels",
    "input",
    "communication",
    "goodput",
    "sharing",
    "rl",
    "cost",
    "planning",
    "measurement",
    "portability",
)
RiskLevel = Literal["low", "medium", "high"]
FRAMEWORKS = ("lightning", "pytorch", "huggingface", "deepspeed", "megatron", "torchtitan", "environment")


class Missing(Exception):
    """The run did not record what a rule needs.

    Args:
        what: the fact that is not there, as in "kernel accounts".
        record: how to record it, as in "EfficiencyCallback(kernel_window=True)".
    """

    def __init__(self, what: str, record: str) -> None:
        super().__init__(what)
        self.what = what
        self.record = record


class NotApplicable(Exception):
    """The rule has nothing to say about this kind of run."""


@dataclass(frozen=True)
class Threshold:
    """A limit that a metric is held against, with the reason for its place."""

    metric: str  # path in the analysis' JSON, or the name of a figure made from it
    value: float
    unit: str  # "share", "s", "steps", ...
    reason: str
    relation: Literal[">", "<", ">=", "<="] = ">"

    def is_crossed(self, value: float) -> bool:
        """Whether the symptom is there."""
        return {
            ">": value > self.value,
            "<": value < self.value,
            ">=": value >= self.value,
            "<=": value <= self.value,
        }[self.relation]

    def saw(self, value: float | None) -> Evidence:
        """The evidence that a value of this run gives."""
        return Evidence(metric=self.metric, value=value, unit=self.unit, threshold=self.value)


@dataclass(frozen=True)
class Match:
    """A rule that found its symptom.

    `changes` is what a trial applies, in the vocabulary of `effprof.advise.changes`; empty where only a person can make
    the change. `knobs` maps a framework to a snippet that can be pasted, with this run's numbers in it.
    """

    evidence: Sequence[Evidence]
    gain: Gain
    knobs: Mapping[str, str]
    title: str = ""  # the rule's own by default
    changes: Mapping[str, Any] = field(default_factory=dict)
    memory_effect_bytes: int | None = None


@dataclass(frozen=True)
class Rule:
    """One symptom and its lever."""

    id: str
    area: str
    title: str
    symptom: str
    thresholds: tuple[Threshold, ...]
    lever: str
    frameworks: Mapping[str, str]  # framework: the knob's form, for the list of rules
    gain_basis: str  # how the prediction is made, in a sentence
    risk: str
    risk_level: RiskLevel
    sources: tuple[str, ...]
    find: Callable[[Analysis], Match | None]
    change: str = ""  # kind of change in the table of published pairs; empty where none is published
    system: str = ""  # catalogue entry: whose practice it follows ("angel", "baige", ...)

    def apply(self, analysis: Analysis) -> list[Finding]:
        """The findings of this rule for a run.

        Raises:
            Missing: the run did not record what the rule needs.
        """
        try:
            match = self.find(analysis)
        except NotApplicable:
            return []
        if match is None:
            return []
        return [
            Finding(
                id=self.id,
                area=self.area,
                title=match.title or self.title,
                evidence=list(match.evidence),
                lever=self.lever,
                knobs=dict(match.knobs),
                gain=match.gain,
                memory_effect_bytes=match.memory_effect_bytes,
                risk=self.risk,
                risk_level=self.risk_level,
                sources=list(self.sources),
                changes=dict(match.changes),
            )
        ]


RULES: dict[str, Rule] = {}


def rule(
    id: str,
    *,
    area: str,
    title: str,
    symptom: str,
    thresholds: Sequence[Threshold],
    lever: str,
    frameworks: Mapping[str, str],
    gain_basis: str,
    risk: str,
    risk_level: RiskLevel,
    sources: Sequence[str],
    change: str = "",
    system: str = "",
) -> Callable[[Callable[[Analysis], Match | None]], Callable[[Analysis], Match | None]]:
    """Registers the function below it as a rule; see `Rule` for the arguments."""

    def register(find: Callable[[Analysis], Match | None]) -> Callable[[Analysis], Match | None]:
        if id in RULES and RULES[id].find.__qualname__ != find.__qualname__:
            raise ValueError(f"two rules are called {id}")
        if area not in AREAS or not thresholds or not sources or not set(frameworks) <= set(FRAMEWORKS):
            raise ValueError(f"rule {id}: unknown area or framework, or no threshold or source")
        RULES[id] = Rule(
            id=id,
            area=area,
            title=title,
            symptom=symptom,
            thresholds=tuple(thresholds),
            lever=lever,
            frameworks=dict(frameworks),
            gain_basis=gain_basis,
            risk=risk,
            risk_level=risk_level,
            sources=tuple(sources),
            find=find,
            change=change,
            system=system,
        )
        return find

    return register
