"""Goodput: the share of the wall clock that went into steps whose result was kept, and what took the rest."""

from __future__ import annotations

from effprof.analysis.model import Account, Goodput


def measure_goodput(account: Account, steps: int) -> Goodput:
    """Goodput from the job's time account, so that both are one table.

    A step counts as a whole: how well it used the device is MFU's business. Steps that an earlier attempt had already
    made, and steps cut short, are `lost_steps`; with them start-up, compilation, evaluation, checkpoints, restarts and
    everything else outside the steps are lost.

    Args:
        account: of the job.
        steps: optimizer steps made; without any there is no goodput.
    """
    if account.wall_s <= 0 or steps == 0:
        return Goodput()
    lost = {name: seconds / account.wall_s for name, seconds in account.lines.items() if not name.startswith("step.")}
    return Goodput(value=max(0.0, 1.0 - sum(lost.values())), lost=lost)
