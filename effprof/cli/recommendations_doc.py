"""Makes docs/recommendations.md from the rules, so that it cannot say anything else than the code.

Run as `python -m effprof.cli.recommendations_doc > docs/recommendations.md`. Nothing in it depends on this machine: how
promises came true here is in `effprof rules`.
"""

from __future__ import annotations

import sys
from itertools import groupby

from effprof.advise.calibration import PRIOR_TRIALS
from effprof.advise.listing import list_rules, spread
from effprof.advise.published import published_changes
from effprof.advise.recommend import RISK_WEIGHTS
from effprof.reports.markdown_elements import table
from effprof.reports.rules import markdown_rule
from effprof.reports.text import percent

_INTRO = """# Recommendations

Made from the rules by `python -m effprof.cli.recommendations_doc`; a test compares the two.

`effprof recommend RUN` holds every rule against a run and lists its findings: the numbers of this run that show the
symptom, the setting that changes it as a line to paste, and the gain to expect. `effprof analyze` and `effprof report`
show the same findings, `effprof rules` the rules themselves. A rule whose facts were not recorded is not silent: it is
listed with what to record.

{rules} rules in {areas} areas. [Gains](#gains) says how a prediction is made.
"""

_GAINS = """## Gains

A gain is the relative change of useful tokens (or samples) per second: 0.12 is 12 % more. It has four values.

- **bound**: what the run's own account allows at most. A part that takes the share *s* of the time can bring
  1 ÷ (1 − *s*) − 1 when all of it goes (Amdahl), and no other value lies above it.
- **low, likely, high**: the bound discounted by the evidence that each rule states under *Gain*. A published number is
  context, never the prediction by itself: it is cut at this run's bound.
- **basis**: `steady` is the throughput of steady steps; `wall` useful work over the whole wall clock, for levers
  outside the steps.

Findings are put in order by likely gain × the weight of their risk ({weights}). Gains do not add up: two levers may
remove the same second. Apply the first, then measure again before the next.

**Calibration.** `effprof verify` tries a finding on this machine and remembers what came. From then on the rule's
gain is scaled by the mean of obtained ÷ likely over its trials (each within 0 … 2), shrunk towards 1 by a prior of
{prior:g} trials, and never above the bound: a rule that promises too much loses rank. Trials lie in
`~/.local/state/effprof/calibration.jsonl`; `EFFPROF_CALIBRATION=off` neither reads nor writes them.

### Published before/after pairs

Spread of the gains in the package's table `published_changes.csv`, in which each row names its source.
"""


def render() -> str:
    """The text of docs/recommendations.md."""
    rules = list_rules().rules
    areas = [(area, list(found)) for area, found in groupby(rules, key=lambda rule: rule.area)]
    parts = [_INTRO.format(rules=len(rules), areas=len(areas))]
    parts.append(
        "\n".join(f"- [{area}](#{area}): {', '.join(f'`{rule.id}`' for rule in found)}" for area, found in areas)
    )
    for area, found in areas:
        parts += [f"## {area}", *(markdown_rule(rule) for rule in found)]
    weights = ", ".join(f"{name} {weight:g}" for name, weight in RISK_WEIGHTS.items())
    parts += [_GAINS.format(weights=weights, prior=PRIOR_TRIALS), _published()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _published() -> str:
    rows = []
    for change in sorted({pair.change for pair in published_changes()}):
        found = spread(change)
        if found is not None:
            quartiles = (percent(value, 1) for value in (found.low, found.median, found.high))
            rows.append((change, str(found.pairs), *quartiles))
    return table(["kind of change", "pairs", "lower quartile", "median", "upper quartile"], rows)


if __name__ == "__main__":
    sys.stdout.write(render())
