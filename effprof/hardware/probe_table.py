"""Makes the table of supported chips in docs/hardware.md from what the probes declare.

Run as `python -m effprof.hardware.probe_table docs/hardware.md`; it rewrites what stands between the two markers, and
a test compares. A probe takes part by its class attribute `support`:

    support = Support(
        family="Cambricon MLU", source="cnmon",
        readings={"power_w": "recorded", "memory_used_bytes": "recorded"},     # name of a reading → State
        unavailable={"energy_j": "cnmon prints no energy counter"},            # name of a reading → why there is none
        evidence="MLU370-X8, cnmon 4.20",                                      # what was read or recorded
    )

A reading's column is found by its name (`COLUMNS`); one that belongs to none is counted under "else".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from effprof.hardware.catalog import load
from effprof.hardware.probes.base import State, Support, probe_classes

BEGIN, END = "<!-- probes:begin -->", "<!-- probes:end -->"
STATES = get_args(State)  # best first
RUN = STATES[0]
COLUMNS = {
    "utilisation": re.compile(r"util|percent|duty_cycle"),
    "memory": re.compile(r"memory_(?:used|total|reserved|free)|_rss_"),
    "power": re.compile(r"power(?:_[a-z]+)*_w$"),
    "energy": re.compile(r"energy.*_j$"),
    "clocks": re.compile(r"_mhz$"),
    "throttling": re.compile(r"throttle"),
    "temperature": re.compile(r"_c$"),
    "links": re.compile(r"pcie|link|net_|ici_"),
}
_INTRO = """Each row is a probe, read once a second by the sampler process, and asked by `effprof device` where torch
shows no device. **run**: read on the real thing by this code. **recorded**: the parser is tested on output that the
vendor's own tool or library printed elsewhere; the chip itself was never at hand, so units, rights and timing are as
documented, not as observed. **documented**: written after the interface's documentation and tested on input made after
it. **–**: no such reading, for the reason below. Blank: the probe does not ask. What is missing on a machine has its
reason in the log: `no_permission`, `no_tool`, `timeout`, `sliced`, `not_supported` …

Regenerate with `python -m effprof.hardware.probe_table docs/hardware.md`; a test compares."""


def render(supports: Sequence[Support], vendors_without: Sequence[str]) -> str:
    """The Markdown between the markers.

    Args:
        supports: what each probe declares.
        vendors_without: vendors of the catalogue that no probe reads.
    """
    ordered = sorted(supports, key=lambda each: each.family.casefold())
    head = ["chips", "through", *COLUMNS, "else"]
    table = [_row(head), _row(["---"] * len(head)), *(_row(_cells(each)) for each in ordered)]
    ran = [each.family for each in ordered if RUN in each.readings.values()]
    never = [each.family for each in ordered if RUN not in each.readings.values()]
    states = [f"- **Run on:** {_list(ran)}.", f"- **Never run on:** {_list(never)}."]
    if vendors_without:
        states.append(f"- **Peaks only, no probe:** {', '.join(vendors_without)}.")
    notes = [line for each in ordered for line in _notes(each)]
    return "\n".join([_INTRO, "", *table, "", *states, "", *notes])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _list(names: Sequence[str]) -> str:
    return "; ".join(names) or "none"


def _cells(support: Support) -> list[str]:
    placed: set[str] = set()
    cells: list[str] = []
    for pattern in COLUMNS.values():
        found = {name: state for name, state in support.readings.items() if pattern.search(name) and name not in placed}
        placed |= found.keys()
        cells.append(_state(set(found.values())) or ("–" if any(map(pattern.search, support.unavailable)) else ""))
    rest = [name for name in support.readings if name not in placed]
    return [support.family, support.source, *cells, str(len(rest)) if rest else ""]


def _state(states: set[str]) -> str:
    """The best of several readings' states."""
    return next((state for state in STATES if state in states), "")


def _notes(support: Support) -> list[str]:
    """What the cells do not say: what was read, and why the rest is missing."""
    said = [support.evidence] if support.evidence else []
    said += [f"no `{name}`: {why}" for name, why in support.unavailable.items()]
    return [f"- {support.family}: {'; '.join(said)}."] if said else []


def declared() -> tuple[list[Support], list[str]]:
    """What the probes of this package declare, and the catalogue's vendors that none of them reads."""
    classes = dict(probe_classes())
    read = {probe_class.vendor for probe_class in classes.values()}
    without = sorted({row.vendor for row in load()} - read, key=str.casefold)
    silent = "{} (declares no `support`)"
    supports = [
        getattr(each, "support", None) or Support(silent.format(name), "", {}) for name, each in classes.items()
    ]
    return supports, without


def insert(page: str, text: str) -> str:
    """The page with `text` between its markers.

    Raises:
        ValueError: the page lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN} … {END}")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(insert(page.read_text(encoding="utf-8"), render(*declared())), encoding="utf-8")
