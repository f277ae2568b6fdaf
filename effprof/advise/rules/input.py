"""Rules on how batches reach the device."""

from __future__ import annotations

from effprof.advise.facts import config, step_share
from effprof.advise.gains import gain_from_removed_share
from effprof.advise.rule import Match, Threshold, rule
from effprof.analysis.model import Analysis, Evidence

WAIT = Threshold(
    "account.step.input_wait",
    0.05,
    "share of step time",
    "below it the wait is within what a busy host's scheduling takes; the Kineto plugin's own rule used the same",
)


@rule(
    "in-workers",
    area="input",
    title="the step waits for the data loader",
    symptom="training thread waits for the next batch while no worker prepares it ahead",
    thresholds=[WAIT],
    lever="load batches in worker processes, ahead of the step",
    frameworks={
        "lightning": "DataLoader(num_workers=N, persistent_workers=True)",
        "pytorch": "DataLoader(num_workers=N, persistent_workers=True)",
        "huggingface": "TrainingArguments(dataloader_num_workers=N, dataloader_persistent_workers=True)",
    },
    gain_basis="the wait's share of the step is the bound; workers hide 60 to 100 % of it where processors are free",
    risk="workers copy the dataset's Python objects: host memory grows with their number",
    risk_level="low",
    sources=["https://github.com/pytorch/kineto/pull/1284"],
    change="dataloader",
    system="general",
)
def too_few_workers(run: Analysis) -> Match | None:
    """Input wait above the threshold with fewer workers than processors."""
    share = step_share(run, "step.input_wait")
    workers, processors = int(config(run, "num_workers")), int(config(run, "host_cpus"))
    wanted = min(8, max(1, processors - 1))
    if not WAIT.is_crossed(share) or workers >= wanted:
        return None
    snippet = f"DataLoader(num_workers={wanted}, persistent_workers=True)"
    return Match(
        evidence=[WAIT.saw(share), Evidence(metric="run.config.num_workers", value=workers, unit="processes")],
        gain=gain_from_removed_share(share, (0.6, 0.9, 1.0)),
        knobs={
            "lightning": snippet,
            "pytorch": snippet,
            "huggingface": f"TrainingArguments(dataloader_num_workers={wanted}, dataloader_persistent_workers=True)",
        },
        changes={"num_workers": wanted, "persistent_workers": True},
    )
