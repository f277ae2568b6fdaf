"""How rules are shown: a list by area, or everything about one; Markdown is also docs/recommendations.md's form."""

from __future__ import annotations

import msgspec

from effprof.advise.listing import ListedRule, ListedTrials, PublishedSpread, Rules
from effprof.reports.markdown_elements import escape
from effprof.reports.text import percent, plural, significant, wrap


def render(listed: Rules, *, as_json: bool = False, as_markdown: bool = False) -> str:
    """The rules as text."""
    if as_json:
        return msgspec.json.encode(listed).decode() + "\n"
    if as_markdown:
        return "\n\n".join(markdown_rule(rule) for rule in listed.rules) + "\n"
    if not listed.rules:
        return "no rule\n"
    blocks = ["\n".join(_text_rule(rule)) for rule in listed.rules]
    return "\n\n".join(blocks) + f"\n\n{plural(len(blocks), 'rule')}\n"


def markdown_rule(rule: ListedRule, *, level: int = 3) -> str:
    """One rule with all it rests on; calibration is left out where no trial was made."""
    items = [
        ("Symptom", escape(rule.symptom)),
        *(("Threshold", escape(text)) for text in _thresholds(rule)),
        ("Lever", escape(rule.lever)),
        ("Gain", escape(rule.gain_basis + _published(rule.published))),
        ("Risk", escape(f"{rule.risk_level}: {rule.risk}")),
        *((f"Knob, {name}", f"`{knob}`") for name, knob in rule.knobs.items()),
        ("Source", " ".join(f"<{url}>" for url in rule.sources)),
    ]
    calibration = _calibration(rule.calibration)
    items += [("Calibration", escape(calibration))] if calibration else []
    lines = "\n".join(f"- {label}: {text}" for label, text in items)
    return f"{'#' * level} `{rule.id}`: {escape(rule.title)}\n\n{lines}"


def _text_rule(rule: ListedRule) -> list[str]:
    rows = [
        ("symptom", rule.symptom),
        *(("threshold", text) for text in _thresholds(rule)),
        ("lever", rule.lever),
        *((name, knob) for name, knob in rule.knobs.items()),
        ("gain", rule.gain_basis + _published(rule.published)),
        ("risk", f"{rule.risk_level}: {rule.risk}"),
        ("source", " ".join(rule.sources)),
        ("calibration", _calibration(rule.calibration)),
    ]
    head = wrap(f"{rule.title} [{rule.area}]", f"{rule.id}  ", len(rule.id) + 2)
    return [*head, *(line for label, text in rows if text for line in wrap(text, f"  {label:<13}", 15))]


def _thresholds(rule: ListedRule) -> list[str]:
    return [
        f"{each.metric} {each.relation} {significant(each.value)} {each.unit}: {each.reason}"
        for each in rule.thresholds
    ]


def _published(found: PublishedSpread | None) -> str:
    if found is None:
        return ""
    spread = f"{percent(found.low, 0)} to {percent(found.high, 0)}, median {percent(found.median, 0)}"
    return f"; published: {spread}, {plural(found.pairs, 'pair')}"


def _calibration(trials: ListedTrials) -> str:
    if not trials.trials:
        return ""
    ratio = trials.obtained_per_predicted
    share = "" if ratio is None else f", obtained ÷ predicted {significant(ratio)} (median)"
    return f"{plural(trials.trials, 'trial')} on this machine, {trials.confirmed} confirmed{share}"
