"""What reports say about the devices' kernels: rank by rank, and the first rank's by family."""

from __future__ import annotations

from effprof.analysis.model import Analysis
from effprof.reports.text import clean, duration, flops, percent

RANK_HEADERS = ("rank", "window", "compute", "exposed comm.", "exposed copies", "idle", "host-bound", "waits for ranks")
FAMILY_HEADERS = ("family", "kernels", "time", "of window", "achieved", "of roofline")


def rank_rows(analysis: Analysis, limit: int) -> list[list[str]]:
    """One row per rank with a kernel account; shares of its window."""
    rows = []
    for rank, one in list(analysis.kernel_account.items())[:limit]:
        window_s = one.window_s

        def share(seconds: float, whole: float = window_s) -> str:
            return percent(seconds / whole) if whole else "–"

        waits = one.stragglers.waiting_s if one.stragglers else None
        rows.append(
            [
                clean(rank),
                duration(window_s),
                *map(share, (one.compute_s, one.communication_exposed_s, one.memory_copy_exposed_s, one.idle_s)),
                share(one.idle.host_bound_s),
                "–" if waits is None else share(waits),
            ]
        )
    return rows


def family_rows(analysis: Analysis) -> list[list[str]]:
    """The kernel families of the first rank, the one with most time first."""
    one = next(iter(analysis.kernel_account.values()), None)
    return [
        [
            clean(name.replace("_", " ").replace(".", ": ")),
            f"{family.count:,}",
            duration(family.union_s),
            "–" if family.share is None else percent(family.share),
            "–" if family.flops_per_s is None else flops(family.flops_per_s, "/s"),
            "–" if family.roofline_share is None else percent(family.roofline_share),
        ]
        for name, family in (one.kernels.items() if one else ())
    ]


def notes(analysis: Analysis) -> list[str]:
    """Sentences that the tables have no column for."""
    one = next(iter(analysis.kernel_account.values()), None)
    if one is None:
        return []
    found = []
    if one.matrix_units is not None and one.matrix_units.share is not None:
        told_s = one.matrix_units.used_s + one.matrix_units.unused_s
        found.append(
            f"matrix units ran {percent(one.matrix_units.share)} of the {duration(told_s)} of matrix work "
            "whose kernels' names tell"
        )
    if one.launch_bound is not None and one.launch_bound.share is not None:
        found.append(f"{percent(one.launch_bound.share)} of the kernels end sooner than the host launches the next")
    if one.pipeline_bubble_s:
        found.append(f"{duration(one.pipeline_bubble_s)} of exposed waiting in send and receive")
    causes = {rank: other.stragglers for rank, other in analysis.kernel_account.items() if other.stragglers}
    if causes:
        rank, worst = max(causes.items(), key=lambda item: item[1].caused_wait_s if item[1] else 0.0)
        if worst and worst.caused_wait_s > 0:
            among = "" if worst.group_is_complete else ", among the ranks with a trace here"
            found.append(
                f"rank {clean(rank)} came last to {worst.last_to_arrive:,} of {worst.matched:,} collectives; "
                f"others waited up to {duration(worst.caused_wait_s)} for it{among}"
            )
    return found
