"""Reports for a terminal: plain text of at most 110 columns, no colours, so that it also reads well in a log."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tabulate import tabulate

from effprof.analysis.compare import Comparison
from effprof.analysis.model import Analysis
from effprof.reports import facts, findings_text, kernels, memory, waterfall
from effprof.reports import side_by_side as compared
from effprof.reports.text import WIDTH, bar, clean, duration, percent, plural, wrap

EXTENSION = "txt"
MIN_COLUMN = 6
SUMMARY_LINES = 8
MAX_ROWS = 16  # of a table that grows with the job: layers, ranks


def render(analysis: Analysis) -> str:
    """The whole report of one run."""
    parts = [
        _efficiency(analysis),
        _account(analysis),
        _waterfall(analysis),
        findings_text.lines(
            analysis.findings, analysis.not_evaluated, framework=analysis.run.framework, path=analysis.run.path
        ),
        _kernels(analysis),
        _memory(analysis),
        _experts(analysis),
        _ranks(analysis),
        _telemetry(analysis),
        _warnings(analysis),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def summary(analysis: Analysis) -> str:
    """At most eight lines for the end of a training."""
    # why there is no MFU names the argument that supplies it: this line may take two
    lines = [_cut(f"{'run':<12}{facts.headline(analysis)}")]
    lines += wrap(facts.mfu_text(analysis, is_short=True), facts.mfu_label(analysis))[:2]
    largest = [row for row in facts.account_rows(analysis) if row[0] != facts.ALL_OTHERS][:4]
    where = " · ".join(f"{facts.line_label(name)} {percent(share)}" for name, _, share in largest)
    warnings = len(facts.other_warnings(analysis))
    rows = [
        ("", facts.conventions_text(analysis)),
        ("throughput", facts.throughput_text(analysis)),
        ("memory", facts.memory_text(analysis)),
        ("time", f"{duration(analysis.account.wall_s)}: {where}"),
        ("experts", facts.experts_text(analysis)),
        ("warnings", f"{warnings}, shown by effprof analyze" if warnings else ""),
    ]
    lines += [_cut(f"{label:<12}{text}") for label, text in rows if text]
    return "\n".join(lines[:SUMMARY_LINES])


def render_comparison(comparison: Comparison) -> str:
    """The whole report of several runs side by side."""
    names = compared.names(comparison)
    runs = [
        line for name, run in zip(names, comparison.runs, strict=True) for line in wrap(compared.describe(run), name, 4)
    ]
    parts = [runs]
    differences = compared.difference_rows(comparison)
    if differences:
        parts.append(["configured differently", *table(["", *names], differences)])
    else:
        parts.append(["no difference in configuration is on record"])
    parts.append([f"figures (× ratio to {names[0]})", *table(["", *names], compared.metric_rows(comparison))])
    shares = compared.account_rows(comparison)
    if shares:
        parts.append(["share of the wall clock", *table(["", *names], shares)])
    parts.append([line for warning in comparison.warnings for line in wrap(clean(warning.message), "-", 2)])
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table that fits into WIDTH columns; the cells of its widest columns are broken over lines."""
    cells = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    while True:
        # wrapped here, because tabulate would read cells such as "1,234" as numbers on the way
        wrapped = [[_fold(cell, width) for cell, width in zip(row, widths, strict=True)] for row in cells]
        text = tabulate(wrapped[1:], headers=wrapped[0], tablefmt="simple", disable_numparse=True)
        lines = [f"  {line}".rstrip() for line in text.splitlines()]
        excess = max(map(len, lines)) - WIDTH
        widest = widths.index(max(widths))
        if excess <= 0 or widths[widest] <= MIN_COLUMN:
            return lines
        others = max([*widths[:widest], *widths[widest + 1 :], MIN_COLUMN])
        widths[widest] = max(MIN_COLUMN, widths[widest] - max(1, min(excess, widths[widest] - others)))


def _fold(cell: str, width: int) -> str:
    return "\n".join(part for line in cell.split("\n") for part in textwrap.wrap(line, width) or [""])


def _efficiency(analysis: Analysis) -> list[str]:
    lines = [
        *wrap(facts.headline(analysis), "run"),
        *wrap(facts.ending(analysis)),
        *wrap(facts.mfu_text(analysis), facts.mfu_label(analysis)),
    ]
    for text, label in (
        (facts.conventions_text(analysis), ""),
        (facts.source_text(analysis), "source"),
        (facts.model_flops_text(analysis), "model FLOPs"),
        (facts.throughput_text(analysis), "throughput"),
        (facts.memory_text(analysis), "memory"),
    ):
        if text:
            lines += wrap(text, label)
    for rule in analysis.efficiency.steps.rules:
        lines += wrap(clean(rule), "steady")
    return lines


def _account(analysis: Analysis) -> list[str]:
    account = analysis.account
    clocks = {"host": "host clock", "device": "device events", "kernel": "kernel window"}
    clock = clocks.get(account.basis, account.basis)
    mean = ", mean over ranks" if len(analysis.ranks) > 1 else ""
    lines = [f"where {duration(account.wall_s)} went ({clock}{mean})"]
    for name, seconds, share in facts.account_rows(analysis):
        shown = bar(share) if share >= facts.SMALL_SHARE else ""
        lines.append(f"  {facts.line_label(name):<24}{percent(share):>8}  {duration(seconds):>12}  {shown}".rstrip())
    return lines


def _waterfall(analysis: Analysis) -> list[str]:
    rows = waterfall.rows(analysis)
    goodput = waterfall.goodput_text(analysis)
    lines = wrap(goodput, "goodput") if goodput else []
    if not rows:
        return lines
    lines.append(f"from the peak down to {percent(analysis.efficiency.mfu_wall.value)} over the whole wall clock")
    for label, share, left, evidence in rows:
        head = f"  − {percent(share):>7}  {label:<26}{percent(left):>8}  "
        lines += [_cut(line) for line in wrap(evidence, head, len(head))]
    return lines


def _memory(analysis: Analysis) -> list[str]:
    lines = []
    rows = memory.rows(analysis)
    if rows:
        lines = [*wrap(f"of {memory.basis_text(analysis)}", "memory"), *table(memory.HEADERS, rows)]
    predicted = memory.prediction_text(analysis)
    if predicted:
        lines += wrap(predicted, "predicted")
    for number, text in enumerate(memory.failure_texts(analysis)):
        lines += wrap(text, "" if number else "ran out")
    return lines


def _kernels(analysis: Analysis) -> list[str]:
    rows = kernels.rank_rows(analysis, MAX_ROWS)
    if not rows:
        return []
    lines = ["kernel window of each rank", *table(kernels.RANK_HEADERS, rows)]
    if len(analysis.kernel_account) > MAX_ROWS:
        lines.append(f"  … and {len(analysis.kernel_account) - MAX_ROWS} more ranks")
    families = kernels.family_rows(analysis)
    if families:
        lines += ["", f"kernels of rank {clean(rows[0][0])}", *table(kernels.FAMILY_HEADERS, families)]
    return [*lines, *(line for note in kernels.notes(analysis) for line in wrap(note, "-", 2))]


def _experts(analysis: Analysis) -> list[str]:
    if analysis.moe is None:
        return []
    rows = facts.expert_rows(analysis, MAX_ROWS)
    lines = [
        *wrap(facts.experts_text(analysis), "experts"),
        *table(["layer", "experts", "busiest ÷ mean", "least ÷ mean", "per batch", "dropped"], rows),
    ]
    hidden = len(analysis.moe.layers) - len(rows)
    return lines + ([f"  … {plural(hidden, 'more layer')}, all in --json"] if hidden else [])


def _ranks(analysis: Analysis) -> list[str]:
    if len(analysis.ranks) < 2:
        return []
    rows = facts.rank_rows(analysis, MAX_ROWS)
    lines = [
        plural(len(analysis.ranks), "rank"),
        *table(["rank", "host", "device", "steps", "step", "tokens/s", "input wait", "forward", "backward"], rows),
    ]
    hidden = len(analysis.ranks) - len(rows)
    if hidden:
        lines.append(f"  … {plural(hidden, 'more rank')}, all in --json")
    return lines + [f"  {line}" for text in facts.spread_texts(analysis) for line in wrap(text, "", 0)]


def _telemetry(analysis: Analysis) -> list[str]:
    rows = facts.telemetry_rows(analysis)
    if not rows:
        return []
    lines = ["telemetry", *table(["device", "reading", "mean", "lowest", "highest"], rows[: 2 * MAX_ROWS])]
    hidden = len(rows) - 2 * MAX_ROWS
    return lines + ([f"  … {plural(hidden, 'more reading')}, all in --json"] if hidden > 0 else [])


def _warnings(analysis: Analysis) -> list[str]:
    found = facts.other_warnings(analysis)
    if not found:
        return []
    lines = [line for warning in found for line in wrap(f"{clean(warning.message)} [{clean(warning.code)}]", "  -", 4)]
    return ["warnings", *lines]


def _cut(line: str) -> str:
    return line.rstrip() if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
