"""How trials are shown: one verification, and the path that a tuning took."""

from __future__ import annotations

import msgspec
from tabulate import tabulate

from effprof.advise.tune import Tuned, TunedRate, TuneStep
from effprof.advise.verification import CONFIRMED, FAILED, Obtained, Verification
from effprof.analysis.model import Gain
from effprof.reports.markdown_elements import escape, table
from effprof.reports.text import NOT_MEASURED, clean, duration, plural, rate, wrap

_WORDS = {CONFIRMED: "confirmed", FAILED: "failed", "refuted": "refuted", "no_difference": "no difference"}
_HEADS = ("finding", "predicted", "obtained", "verdict", "kept")
_SEGMENT_HEADS = ("segment", "rate", "steps", "stepping", "process", "outcome")
LIGHTNING = "lightning"


def render_verification(verification: Verification, *, as_json: bool = False, as_markdown: bool = False) -> str:
    """The verification as text."""
    if as_json:
        return msgspec.json.encode(verification).decode() + "\n"
    title = f"effprof verify: {_verdict(verification)}"
    facts = _facts(verification)
    if as_markdown:
        tables = [table(("", ""), facts), table(_SEGMENT_HEADS, _segments(verification))]
        return "\n\n".join([f"### {title}", *tables]) + "\n"
    lines = [line for label, text in facts for line in wrap(text, label)]
    segments = tabulate(_segments(verification), headers=_SEGMENT_HEADS, tablefmt="plain", disable_numparse=True)
    return "\n".join([title, *lines, "", segments]) + "\n"


def render_tuned(tuned: Tuned, *, as_json: bool = False, as_markdown: bool = False) -> str:
    """The path that the tuning took, and the configuration it ended with."""
    if as_json:
        return msgspec.json.encode(tuned).decode() + "\n"
    total = f" · {obtained_text(tuned.gain)}" if tuned.gain else ""
    before, after = _rate(tuned.baseline), _rate(tuned.final)
    title = (
        f"effprof tune: {before} → {after}{total}" if tuned.final.changes else f"effprof tune: {before}, nothing kept"
    )
    rows = [_step(step) for step in tuned.steps]
    notes = [f"{step.finding}: {clean(step.reason)}" for step in tuned.steps if not step.kept and step.reason]
    end = f"{tuned.stopped} · {plural(len(tuned.steps), 'change')} tried in {duration(tuned.seconds)} · {tuned.trials}"
    snippets = tuned.final.knobs.get(LIGHTNING) or next(iter(tuned.final.knobs.values()), [])
    if as_markdown:
        path = table(_HEADS, rows) if rows else ""
        code = "```python\n" + "\n".join(snippets) + "\n```" if snippets else ""
        parts = [f"### {title}", path, *(f"- {escape(note)}" for note in notes), code, escape(clean(end))]
        return "\n\n".join(part for part in parts if part) + "\n"
    plain = tabulate(rows, headers=_HEADS, tablefmt="plain", disable_numparse=True).splitlines() if rows else []
    body = [title, "", *plain, *([""] if plain else []), *(line for note in notes for line in wrap(note, "", 2))]
    if snippets:
        body += ["", "write into your script:", *(f"  {line}" for each in snippets for line in each.splitlines())]
    return "\n".join([*body, *wrap(clean(end), "ended")]) + "\n"


def gain_text(gain: Gain | None) -> str:
    """Predicted gain: likely, with low … high."""
    return "none" if gain is None else f"{gain.likely:+.1%} ({gain.low:+.1%} … {gain.high:+.1%})"


def obtained_text(obtained: Obtained | None) -> str:
    """Measured gain with its interval."""
    if obtained is None:
        return NOT_MEASURED
    if obtained.ci95 is None:
        return f"{obtained.value:+.1%}"
    return f"{obtained.value:+.1%} ({obtained.ci95[0]:+.1%} … {obtained.ci95[1]:+.1%})"


def _verdict(verification: Verification) -> str:
    word = _WORDS[verification.verdict]
    if verification.loss and verification.loss.is_damaged:
        word += ", but the loss is damaged"
    return word + (" (interrupted: from the segments that were complete)" if verification.is_interrupted else "")


def _facts(verification: Verification) -> list[tuple[str, str]]:
    unit = verification.metric.replace("_per_s", "/s")
    changes = ", ".join(f"{name}={value}" for name, value in verification.changes.items())
    facts = [
        ("finding", verification.finding or ""),
        ("change", changes),
        ("predicted", gain_text(verification.predicted) if verification.predicted else ""),
        ("obtained", obtained_text(verification.obtained)),
        ("verdict", verification.reason),
        ("speed", f"{rate(verification.before, unit)} → {rate(verification.after, unit)}"),
        ("loss", _loss(verification)),
        ("refused", "; ".join(f"{name}: {why}" for name, why in verification.refused.items())),
        ("trials", f"{verification.trials} · {duration(verification.seconds)}"),
    ]
    return [(label, clean(text)) for label, text in facts if text]


def _loss(verification: Verification) -> str:
    loss = verification.loss
    if loss is None:
        return ""
    values = [NOT_MEASURED if value is None else f"{value:.4g}" for value in (loss.before, loss.after)]
    if loss.difference is None or loss.allowed is None:
        return f"{values[0]} → {values[1]} over {loss.steps} steps"
    return (
        f"{values[0]} → {values[1]} over {loss.steps} steps: {loss.difference:+.2%}, "
        f"up to {loss.allowed:.2%} is within the training's own spread"
    )


def _segments(verification: Verification) -> list[tuple[str, ...]]:
    return [
        (
            each.side,
            NOT_MEASURED if each.rate is None else f"{each.rate:,.1f}",
            str(each.steps),
            duration(each.seconds),
            duration(each.wall_s),
            clean(f"{each.outcome} {each.reason}", 80),
        )
        for each in verification.segments
    ]


def _rate(rates: TunedRate) -> str:
    if rates.tokens_per_s is not None:
        return rate(rates.tokens_per_s, "tokens/s")
    return rate(rates.samples_per_s, "samples/s")


def _step(step: TuneStep) -> list[str]:
    verdict = _WORDS[step.verdict] + (", loss damaged" if step.is_loss_damaged else "")
    return [
        step.finding,
        gain_text(step.predicted),
        obtained_text(step.obtained),
        verdict,
        "yes" if step.kept else "no",
    ]
