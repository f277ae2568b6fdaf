"""What the HTML report draws: each chart's numbers for the script, with a description and a table for everyone else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from effprof.analysis.model import Analysis
from effprof.analysis.timeline_model import Timeline, TimelineBand, TimelineSeries
from effprof.reports.html_elements import figure, legend, table, thin_note, thinned
from effprof.reports.text import clean, duration, gibibytes, percent, significant

SERIES_COLORS = (
    "--c-forward",
    "--c-communication",
    "--c-backward",
    "--c-copy",
    "--c-optimizer",
    "--c-input",
    "--c-generation",
    "--c-other",
)
PHASE_COLORS = {
    "input_wait": "--c-input",
    "host_to_device": "--c-copy",
    "forward": "--c-forward",
    "backward": "--c-backward",
    "optimizer": "--c-optimizer",
    "generation": "--c-generation",
    "other": "--c-other",
}
EVENT_COLORS = {
    "startup": "--c-startup",
    "compile": "--c-lost",
    "evaluation": "--c-evaluation",
    "checkpoint": "--c-checkpoint",
    "throttling": "--c-input",
    "warning": "--c-optimizer",
    "attempt": "--soft",
    "ended": "--bad",
}
EVENT_NAMES = {"attempt": "attempt starts", "ended": "attempt ended early"}
MAX_TABLE_COLUMNS = 32  # experts up to here are columns of the table, more are summed up
MAX_TABLE_RANKS = 128
NAME_LIMIT = 60


class Charts:
    """Collects the charts of a page; each method adds one and returns its HTML."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.specifications: dict[str, dict[str, Any]] = {}

    @property
    def timeline(self) -> Timeline | None:
        """The run over time, where the analysis has it."""
        return self.analysis.timeline

    def band(
        self,
        name: str,
        title: str,
        values: TimelineBand,
        unit: str,
        color: str,
        marks: Iterable[str] = (),
        **more: Any,
    ) -> str:
        """One value per bin of steps over time, with the range inside each bin; `marks` are the events' kinds."""
        timeline = self.timeline
        assert timeline is not None
        series: dict[str, Any] = {
            "at": timeline.at_s,
            "attempt": timeline.attempt,
            "first_step": timeline.first_step,
            "last_step": timeline.last_step,
            "median": values.median,
        }
        if values.low != values.high and values.low:
            series |= {"low": values.low, "high": values.high}
        self.specifications[name] = {
            "type": "band",
            "name": title,
            "unit": unit,
            "color": color,
            "span": [0, timeline.wall_s],
            "series": series,
            "group": "steps",
            **more,
        }
        rows = [
            (
                _steps(timeline.first_step[i], timeline.last_step[i]),
                duration(timeline.at_s[i]),
                *(amount(column[i], unit) for column in (values.median, values.low, values.high) if column),
            )
            for i in thinned(len(timeline.at_s))
        ]
        heads = ["steps", "at", "median", "lowest", "highest"][: len(rows[0]) if rows else 3]
        known = [value for value in values.median if value is not None]
        lowest = min((value for value in values.low or values.median if value is not None), default=None)
        highest = max((value for value in values.high or values.median if value is not None), default=None)
        reach = f"from {amount(lowest, unit)} to {amount(highest, unit)}"
        says = f"{len(known)} points over {duration(timeline.wall_s)}, {reach}."
        return figure(
            name,
            title,
            says,
            table(heads, rows, caption=thin_note(len(timeline.at_s))),
            unit=_axis_unit(unit),
            legend=legend((EVENT_NAMES.get(kind, kind), EVENT_COLORS.get(kind, "--c-other")) for kind in marks),
        )

    def phases(self) -> str:
        """Seconds per step by phase, stacked over time."""
        timeline = self.timeline
        assert timeline is not None
        found = {
            name: timeline.phases_s[name]
            for name in ("forward", "backward", "optimizer", "generation", "host_to_device", "input_wait", "other")
            if name in timeline.phases_s
        }
        self.specifications["phases"] = {
            "type": "phases",
            "span": [0, timeline.wall_s],
            "at": timeline.at_s,
            "attempt": timeline.attempt,
            "phases": found,
            "group": "steps",
            "top": steady_top(timeline, list(found.values())),
        }
        names = [name.replace("_", " ") for name in found]
        rows = [
            (
                _steps(timeline.first_step[i], timeline.last_step[i]),
                *(duration(values[i]) for values in found.values()),
            )
            for i in thinned(len(timeline.at_s))
        ]
        return figure(
            "phases",
            "What a step is made of",
            f"seconds per step in {', '.join(names)}.",
            table(["steps", *names], rows, caption=thin_note(len(timeline.at_s))),
            legend=legend((name.replace("_", " "), PHASE_COLORS[name]) for name in found),
        )

    def lines(
        self, name: str, title: str, series: Sequence[TimelineSeries], names: Sequence[str], unit: str, **more: Any
    ) -> str:
        """Readings over time in one chart."""
        timeline = self.timeline
        assert timeline is not None
        drawn = []
        for label, one in zip(names, series, strict=True):
            entry: dict[str, Any] = {"name": clean(label, NAME_LIMIT), "at": one.at_s, "median": one.median}
            if one.low != one.high:
                entry |= {"low": one.low, "high": one.high}
            drawn.append(entry)
        is_small = bool(more.get("small"))
        self.specifications[name] = {
            "type": "lines",
            "unit": unit,
            "span": [0, timeline.wall_s],
            "series": drawn,
            **more,
        }
        longest = max(series, key=lambda one: len(one.at_s))
        rows = [
            (duration(longest.at_s[i]), *(amount(_value_at(one, longest.at_s[i]), unit) for one in series))
            for i in thinned(len(longest.at_s))
        ]
        ranges = "; ".join(
            f"{label} from {amount(min(one.low), unit)} to {amount(max(one.high), unit)}"
            for label, one in zip(names, series, strict=True)
        )
        return figure(
            name,
            title,
            f"{ranges}.",
            table(["at", *names], rows, caption=thin_note(len(longest.at_s), "points")),
            unit=_axis_unit(unit),
            legend=legend((label, SERIES_COLORS[i % len(SERIES_COLORS)]) for i, label in enumerate(names))
            if len(series) > 1
            else "",
            is_small=is_small,
        )

    def experts(self) -> str:
        """Load of each expert of each layer over the layer's mean."""
        moe = self.analysis.moe
        assert moe is not None
        width = max((len(layer.tokens_per_expert) for layer in moe.layers), default=0)
        cells: list[list[float | None]] = []
        tokens: list[list[int | None]] = []
        for layer in moe.layers:
            total = sum(layer.tokens_per_expert)
            own = layer.tokens_per_expert
            loads = [round(count * len(own) / total, 4) if total else 0.0 for count in own]
            cells.append([*loads, *([None] * (width - len(own)))])
            tokens.append([*own, *([None] * (width - len(own)))])
        layers = [clean(layer.name, NAME_LIMIT) for layer in moe.layers]
        self.specifications["experts"] = {
            "type": "heat",
            "rows": layers,
            "columns": [str(i) for i in range(width)],
            "columnsName": "expert",
            "columnTitles": [f"expert {i}" for i in range(width)],
            "cells": cells,
            "center": 1,
            "unit": "×",
            "valueName": "of the mean",
            "extra": {"name": "tokens", "unit": "", "cells": tokens},
        }
        if width <= MAX_TABLE_COLUMNS:
            heads = ["layer", *(f"expert {i}" for i in range(width))]
            rows = [(name, *(_number(value) for value in row)) for name, row in zip(layers, cells, strict=True)]
        else:
            heads = ["layer", "busiest expert", "its load ÷ mean", "median ÷ mean", "least ÷ mean", "without tokens"]
            rows = [
                _expert_summary(name, [v for v in row if v is not None])
                for name, row in zip(layers, cells, strict=True)
            ]
        return figure(
            "experts",
            "Expert load, layers × experts",
            f"{len(layers)} layers of up to {width} experts; 1 is an even load"
            + (f", the busiest expert has {moe.imbalance:.2f} times the mean on average." if moe.imbalance else "."),
            table(heads, rows, caption="tokens of the expert ÷ mean of its layer"),
            unit="÷ mean of the layer",
        )

    def ranks(self) -> str:
        """Ranks × time, one of several phases at a time."""
        timeline = self.timeline
        assert timeline is not None
        bins = timeline.ranks
        assert bins is not None
        titles = [_steps(first, last) for first, last in zip(bins.first_step, bins.last_step, strict=True)]
        self.specifications["ranks"] = {
            "type": "heat",
            "rows": [f"rank {rank}" for rank in bins.ranks],
            "columns": [str(step) for step in bins.first_step],
            "columnsName": "step",
            "columnTitles": titles,
            "metrics": bins.values_s,
            "metric": "step",
            "clip": 0.98,
            "unit": "s",
        }
        rows = [
            (
                f"rank {rank}",
                *(
                    text
                    for values in bins.values_s.values()
                    for text in (
                        duration(_mean(values[i])),
                        duration(max((v for v in values[i] if v is not None), default=None)),
                    )
                ),
            )
            for i, rank in enumerate(bins.ranks[:MAX_TABLE_RANKS])
        ]
        heads = [
            "rank",
            *(f"{name.replace('_', ' ')} {which}" for name in bins.values_s for which in ("mean", "slowest bin")),
        ]
        return figure(
            "ranks",
            "Ranks over time",
            f"seconds per step of {len(bins.ranks)} ranks in {len(titles)} bins of steps.",
            table(heads, rows),
            unit="seconds per step",
        )

    def waterfall(self, bars: Sequence[dict[str, Any]]) -> str:
        """From the dense peak down to MFU."""
        self.specifications["waterfall"] = {
            "type": "waterfall",
            "bars": list(bars),
        }
        rows = [(bar["name"], bar["text"], *(value for _, value in bar["rows"][1:])) for bar in bars]
        width = max(len(row) for row in rows)
        return figure(
            "waterfall",
            "From peak to MFU",
            "; ".join(f"{bar['name']} {bar['text']}" for bar in bars) + ".",
            table(
                ["", "share", "time", "evidence"][:width],
                [(*row, *[""] * (width - len(row))) for row in rows],
                text_columns=(3,),
            ),
            unit=f"share of {bars[0]['name']} × wall clock",
        )


def steady_top(timeline: Timeline, stacked: Sequence[Sequence[float | None]]) -> float | None:
    """Where a scale ends so that the steady bins fill it; null where none is steady."""
    totals = [
        sum(values[i] or 0.0 for values in stacked) for i, is_steady in enumerate(timeline.is_steady) if is_steady
    ]
    return 1.08 * max(totals) if totals and max(totals) > 0 else None


def amount(value: float | None, unit: str) -> str:
    """A value with its unit, as the tables show it."""
    if value is None:
        return "–"
    if unit == "s":
        return duration(value)
    if unit == "share":
        return percent(value)
    if unit == "bytes":
        return gibibytes(value)
    if unit == "bytes/s":
        return f"{gibibytes(value)}/s"
    return f"{significant(value)} {unit}".strip()


def _axis_unit(unit: str) -> str:
    return {"s": "", "share": "", "bytes": "", "bytes/s": "", "percent": "%"}.get(unit, unit)


def _steps(first: int, last: int) -> str:
    return f"step {first:,}" if first == last else f"steps {first:,} – {last:,}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _value_at(series: TimelineSeries, at_s: float) -> float | None:
    if not series.at_s:
        return None
    return series.median[min(range(len(series.at_s)), key=lambda i: abs(series.at_s[i] - at_s))]


def _expert_summary(name: str, loads: Sequence[float]) -> tuple[str, ...]:
    if not loads:
        return (name, "–", "–", "–", "–", "–")
    ordered = sorted(loads)
    busiest = max(range(len(loads)), key=lambda i: loads[i])
    return (
        name,
        str(busiest),
        _number(ordered[-1]),
        _number(ordered[len(ordered) // 2]),
        _number(ordered[0]),
        str(sum(load == 0 for load in loads)),
    )
