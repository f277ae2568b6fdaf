"""How a run ended, from its closing lines and the age of its last record."""

from __future__ import annotations

import numpy as np

from effprof.analysis.model import Warning
from effprof.analysis.steps import column
from effprof.runlog.reader import Run

RUNNING_S = 10.0  # a writer flushes every second; a record this old without a closing line has no writer any more


def outcome(run: Run, now_s: float) -> tuple[str, str, list[Warning]]:
    """(ended, reason, warnings): `completed`, `failed`, `killed` or `running`, of the last attempt.

    Args:
        now_s: Unix time to judge the last record's age by.
    """
    ranks = run.attempts[-1].ranks
    failed = next((rank.end for rank in ranks if rank.end and rank.end.status == "failed"), None)
    if failed is not None:
        return "failed", failed.reason, []
    open_ranks = [rank for rank in ranks if rank.end is None]
    if not open_ranks:
        return "completed", next((rank.end.reason for rank in ranks if rank.end and rank.end.reason), ""), []
    last_s = max(rank.wall(rank.last_ns) for rank in ranks)
    if now_s - last_s < RUNNING_S:
        return "running", "", []
    step = int(max((np.nanmax(column(rank, "step"), initial=0) for rank in open_ranks), default=0))
    numbers = ", ".join(str(rank.header.rank) for rank in open_ranks[:8]) + (", …" if len(open_ranks) > 8 else "")
    message = (
        f"no closing line (rank {numbers}): the run was killed after step {step}; "
        "what happened in the last second before that may be missing"
    )
    return "killed", "", [Warning(code="killed", message=message)]
