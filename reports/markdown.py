"""Reports in Markdown, for issues, pull requests and wikis."""

from __future__ import annotations

from effprof.analysis.compare import Comparison
from effprof.analysis.model import Analysis
from effprof.reports import facts, findings_markdown, kernels, memory, waterfall
from effprof.reports import side_by_side as compared
from effprof.reports.markdown_elements import escape, table
from effprof.reports.text import bar, clean, duration, percent

EXTENSION = "md"
MAX_ROWS = 32


def render(analysis: Analysis) -> str:
    """The whole report of one run."""
    title = clean(analysis.run.model.get("name") or analysis.run.id)
    rows = [
        ("run", facts.headline(analysis)),
        ("ended", facts.ending(analysis)),
        ("source", facts.source_text(analysis)),
        (facts.mfu_label(analysis), facts.mfu_text(analysis)),
        ("other conventions", facts.conventions_text(analysis)),
        ("model FLOPs", facts.model_flops_text(analysis)),
        ("throughput", facts.throughput_text(analysis)),
        ("memory", facts.memory_text(analysis)),
        ("goodput", waterfall.goodput_text(analysis)),
        ("steady", " · ".join(map(clean, analysis.efficiency.steps.rules))),
    ]
    parts = [
        f"## {escape(title)}",
        table(["", ""], [row for row in rows if row[1]]),
        f"### Where {duration(analysis.account.wall_s)} went",
        table(
            ["line", "share", "time", ""],
            [
                (
                    facts.line_label(name),
                    percent(share),
                    duration(seconds),
                    bar(share) if share >= facts.SMALL_SHARE else "",
                )
                for name, seconds, share in facts.account_rows(analysis)
            ],
        ),
        f"Basis: {analysis.account.basis}; mean over {len(analysis.ranks)} rank(s).",
    ]
    bars = waterfall.rows(analysis)
    if bars:
        cells = [(label, percent(share), percent(left), evidence) for label, share, left, evidence in bars]
        parts += ["### From the peak down to MFU over the whole wall clock"]
        parts += [table(["lost to", "share", "left", "from"], cells)]
    run = analysis.run
    parts += findings_markdown.parts(analysis.findings, analysis.not_evaluated, framework=run.framework, path=run.path)
    windows = kernels.rank_rows(analysis, MAX_ROWS)
    if windows:
        parts += ["### Kernel window", table(list(kernels.RANK_HEADERS), windows)]
        parts += [table(list(kernels.FAMILY_HEADERS), kernels.family_rows(analysis))]
        parts += ["\n".join(f"- {escape(note)}" for note in kernels.notes(analysis))]
    held = memory.rows(analysis)
    if held:
        parts += ["### Memory", f"Of {escape(memory.basis_text(analysis))}.", table(list(memory.HEADERS), held)]
    predicted = memory.prediction_text(analysis)
    if predicted:
        parts += [f"Predicted: {escape(predicted)}."]
    failure = memory.failure_texts(analysis)
    if failure:
        parts += ["### Ran out of memory", "\n".join(f"- {escape(text)}" for text in failure)]
    if analysis.moe is not None:
        heads = ["layer", "experts", "busiest ÷ mean", "least ÷ mean", "per batch", "dropped"]
        parts += ["### Experts", escape(facts.experts_text(analysis))]
        parts += [table(heads, facts.expert_rows(analysis, MAX_ROWS))]
    if len(analysis.ranks) > 1:
        heads = ["rank", "host", "device", "steps", "step", "tokens/s", "input wait", "forward", "backward"]
        parts += ["### Ranks", table(heads, facts.rank_rows(analysis, MAX_ROWS))]
        parts += ["\n".join(f"- {escape(text)}" for text in facts.spread_texts(analysis))]
    telemetry = facts.telemetry_rows(analysis)
    if telemetry:
        parts += ["### Telemetry", table(["device", "reading", "mean", "lowest", "highest"], telemetry)]
    warnings = facts.other_warnings(analysis)
    if warnings:
        lines = (f"- {escape(clean(warning.message))} ({escape(clean(warning.code))})" for warning in warnings)
        parts += ["### Warnings", "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_comparison(comparison: Comparison) -> str:
    """The whole report of several runs side by side."""
    names = compared.names(comparison)
    runs = zip(names, comparison.runs, strict=True)
    differences = compared.difference_rows(comparison)
    parts = [
        "## Comparison",
        "\n".join(f"- **{name}**: {escape(compared.describe(run))}" for name, run in runs),
        "### Configured differently",
        table(["", *names], differences) if differences else "Nothing, as far as the records say.",
        f"### Figures (× ratio to {names[0]})",
        table(["", *names], compared.metric_rows(comparison)),
    ]
    shares = compared.account_rows(comparison)
    if shares:
        parts += ["### Share of the wall clock", table(["", *names], shares)]
    parts.append("\n".join(f"- {escape(clean(warning.message))}" for warning in comparison.warnings))
    return "\n\n".join(part for part in parts if part) + "\n"
