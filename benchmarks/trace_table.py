"""The kernel account of real traces beside HTA's, and why they differ where they do.

    python benchmarks/trace_table.py            # prints the table and writes it between the markers in docs/accuracy.md
    python benchmarks/trace_table.py --check    # fails where the two differ on the trace as HTA looks at it

Every trace is given to both as it is, and once more cut down to what HTA looks at. There they must agree to the
microsecond: so the reasons named are the whole difference.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate
from trace_inputs import MISSING, hta_view, list_traces, load

from effprof import __version__
from effprof.trace.account import account_traces

ACCURACY = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
BEGIN, END = "<!-- trace:begin -->", "<!-- trace:end -->"
SAME_US = 1.0  # HTA's figures are whole µs


class Split(NamedTuple):
    """Window, compute, and idle, in µs; what is left is exposed communication and copies."""

    window: float
    compute: float
    idle: float
    exposed: float
    overlap: float | None  # share of communication that compute hides; None without communication

    def differs(self, other: Split) -> bool:
        pairs = zip(self[:4], other[:4], strict=True)
        is_far = any(abs(one - another) > SAME_US for one, another in pairs)
        if self.overlap is None or other.overlap is None:
            return is_far or self.overlap != other.overlap
        return is_far or abs(self.overlap - other.overlap) > 1e-4


def by_effprof(path: Path) -> Split:
    (one,) = account_traces(str(path)).ranks.values()
    exposed = one.communication_exposed_s + one.memory_copy_exposed_s
    hidden = 1 - one.communication_exposed_s / one.communication_s if one.communication_s else None
    return Split(one.window_s * 1e6, one.compute_s * 1e6, one.idle_s * 1e6, exposed * 1e6, hidden)


def by_hta(path: Path) -> Split | str:
    """HTA's temporal breakdown and overlap of one trace; its complaint where it cannot read it."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from hta.trace_analysis import TraceAnalysis

    try:
        analysis = TraceAnalysis(trace_files={0: str(path)}, include_last_profiler_step=True)
        (row,) = analysis.get_temporal_breakdown(visualize=False).to_dict("records")
        (overlap,) = analysis.get_comm_comp_overlap(visualize=False).to_dict("records")
    except Exception as error:  # what HTA raises on a trace without kernels is no error type of its own
        return f"{type(error).__name__}: {error}"
    finally:
        logging.disable(logging.NOTSET)
    percent = overlap["comp_comm_overlap_pctg"]
    return Split(
        row["kernel_time(us)"],
        row["compute_time(us)"],
        row["idle_time(us)"],
        row["non_compute_time(us)"],
        None if percent != percent else percent / 100,
    )


def compare(path: Path) -> dict[str, Any]:
    """Both figures of a trace, and both of the trace as HTA looks at it."""
    document, reasons = hta_view(load(path))
    with tempfile.TemporaryDirectory() as folder:
        view = Path(folder) / "view.json"
        view.write_text(json.dumps(document))
        ours, theirs = by_effprof(view), by_hta(view)
    return {
        "trace": path.name,
        "effprof": by_effprof(path),
        "hta": by_hta(path),
        "reasons": reasons,
        "view": (ours, theirs),
        "agrees": isinstance(theirs, Split) and not ours.differs(theirs),
    }


def row_of(one: dict[str, Any]) -> list[str]:
    ours, theirs = one["effprof"], one["hta"]
    if isinstance(theirs, str):
        return [one["trace"], *(f"{value:,.0f}" for value in ours[:4]), "–", "–", "–", "–", f"HTA fails ({theirs})"]
    why = "; ".join(one["reasons"]) if ours.differs(theirs) else "the same"
    agrees = "" if one["agrees"] else " — **and more**"
    return [one["trace"], *(f"{value:,.0f}" for value in (*ours[:4], *theirs[:4])), why + agrees]


def render(rows: list[dict[str, Any]]) -> str:
    headers = ["trace", "window", "compute", "idle", "exposed", "HTA window", "compute", "idle", "non-compute", "why"]
    table = tabulate([row_of(one) for one in rows], headers=headers, tablefmt="github", disable_numparse=True)
    agreeing = sum(one["agrees"] for one in rows)
    compared = sum(isinstance(one["hta"], Split) for one in rows)
    return "\n".join(
        [
            BEGIN,
            "<!-- written by benchmarks/trace_table.py; do not edit by hand -->",
            "",
            "Microseconds of device time of one rank. *Exposed* is communication outside compute and copies outside",
            "both, which HTA calls non-compute. Each trace was also given to both as HTA looks at it, that is with the",
            f"differences named in the last column taken out: there {agreeing} of {compared} agree to the microsecond,",
            "and so does the share of communication that compute hides.",
            "",
            table,
            "",
            f"effprof {__version__}, HTA {importlib.metadata.version('HolisticTraceAnalysis')} with "
            "`include_last_profiler_step=True` (it drops the last step otherwise).",
            END,
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the two differ")
    arguments = parser.parse_args()
    traces = list_traces()
    if not traces:
        print(MISSING, file=sys.stderr)
        return 2
    rows = [compare(path) for path in traces]
    text = render(rows)
    print(text)
    failed = [one["trace"] for one in rows if isinstance(one["hta"], Split) and not one["agrees"]]
    if failed:
        print(f"unexplained: {', '.join(failed)}", file=sys.stderr)
    if not arguments.check:
        document = ACCURACY.read_text()
        if BEGIN in document:
            before, _, rest = document.partition(BEGIN)
            document = before + text + rest.partition(END)[2]
        else:
            document = document.rstrip() + "\n\n## Traces\n\n" + text + "\n"
        ACCURACY.write_text(document)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
