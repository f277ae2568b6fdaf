"""What would change a run, in words that all outputs share: gain, snippet, how to verify, what was not judged."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping

from effprof.analysis.model import Finding, Gain, NotEvaluated
from effprof.reports.text import clean, plural, significant

TITLE = "what would change it"
ORDER = "apply the first, then measure again before the next: gains do not add up"
MAX_FACTS = 3  # missing facts that one line names
# The start of a framework's name on record → key of `knobs`; snippets for plain PyTorch serve everybody else.
_KNOBS_OF = {
    "pytorch-lightning": "lightning",
    "lightning": "lightning",
    "transformers": "huggingface",
    "deepspeed": "deepspeed",
    "megatron": "megatron",
    "torchtitan": "torchtitan",
}
_BASES = {"wall": " of the wall clock"}


def heading(findings: Iterable[Finding]) -> str:
    """The section's title, which says what kind of numbers these are."""
    states = {finding.verified for finding in findings}
    if states == {True}:
        return f"{TITLE} (verified in trials)"
    return f"{TITLE} (predicted, not verified yet)"


def gain_text(gain: Gain) -> str:
    """A gain as "+11 % (8 … 13)"; a finding that brings correctness or money instead says so."""
    if gain.bound <= 0:
        return "no speed"
    low, likely, high = (_whole(value) for value in (gain.low, gain.likely, gain.high))
    sign = "" if likely.startswith("-") else "+"
    return f"{sign}{likely} % ({low} … {high}){_BASES.get(gain.basis, '')}"


def snippet(finding: Finding, framework: str) -> tuple[str, str]:
    """The framework whose snippet fits the run, and the snippet; both empty where there is none.

    A run whose framework has no snippet of its own gets the one for plain PyTorch, then whichever there is.
    """
    name = framework.lower()
    wanted = next((key for start, key in _KNOBS_OF.items() if name.startswith(start)), "pytorch")
    for key in (wanted, "pytorch", *finding.knobs):
        if key in finding.knobs:
            return key, finding.knobs[key]
    return "", ""


def verify_command(finding: Finding, path: str) -> str:
    """How to try a finding on this machine; empty where only a person can make the change."""
    if not finding.changes or finding.verified:
        return ""
    return f"effprof verify {shlex.quote(clean(path))} --finding {clean(finding.id)} -- python train.py"


def evidence_text(finding: Finding) -> str:
    """The numbers of this run that a finding rests on, with the limits they crossed."""
    parts = []
    for each in finding.evidence:
        value = "–" if each.value is None else significant(each.value)
        limit = "" if each.threshold is None else f" (limit {significant(each.threshold)})"
        parts.append(f"{clean(each.metric)} {value} {clean(each.unit)}".strip() + limit)
    return "; ".join(parts)


def trials_text(finding: Finding) -> str:
    """How many trials on this machine shaped the gain; empty without any."""
    return f"gain shaped by {plural(finding.trials, 'trial')} on this machine" if finding.trials else ""


def missing_texts(missing: Iterable[NotEvaluated]) -> list[str]:
    """Rules that could not be evaluated, one line for each way to record what they need, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for each in missing:
        groups.setdefault(each.record, []).append(each.missing)
    lines = []
    for record, facts in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        distinct = [clean(fact, 80) for fact, _ in Counter(facts).most_common()]
        shown = ", ".join(distinct[:MAX_FACTS]) + (" and more" if len(distinct) > MAX_FACTS else "")
        verb = "needs" if len(facts) == 1 else "need"
        lines.append(f"{plural(len(facts), 'rule')} {verb} {shown}: {clean(record)}")
    return lines


def knobs_text(knobs: Mapping[str, str]) -> list[tuple[str, str]]:
    """Framework and snippet of every knob, safe to print."""
    return [(clean(name, 40), "\n".join(clean(line) for line in text.splitlines())) for name, text in knobs.items()]


def _whole(share: float) -> str:
    shown = f"{100 * share:.{0 if abs(share) >= 0.01 else 1}f}"
    return shown if float(shown) else "0"
