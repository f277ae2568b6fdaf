"""Rules on the size of model and job: context for the next plan, not for the next step."""

from __future__ import annotations

from effprof.advise.facts import config
from effprof.advise.gains import no_gain
from effprof.advise.layout import devices_per_node, exposed_communication, needs_devices, node_count, parameters
from effprof.advise.rule import Match, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence

PLANNED = Threshold(
    "run.config.max_steps × efficiency.tokens_per_step",
    1e9,
    "tokens",
    "shorter trainings are fine-tuning or tests, for which no such ratio holds",
)
TOKENS_PER_PARAMETER = Threshold(
    "planned tokens ÷ parameters",
    5.0,
    "tokens per parameter",
    "a quarter of Chinchilla's 20: at equal compute a model half as large reaches a lower loss",
    relation="<",
)
WAITING = Threshold(
    "kernel_account: exposed communication ÷ window",
    0.40,
    "share of the kernel window",
    "at this share half of the nodes keep more than 70 % of the rate",
)


@rule(
    "plan-tokens-per-parameter",
    area="planning",
    title="few tokens for the size of the model",
    symptom="the training ends long before the ratio at which compute was found to be spent best",
    thresholds=[PLANNED, TOKENS_PER_PARAMETER],
    lever="context for the next plan: fewer parameters and more tokens at the same compute",
    frameworks={"lightning": "Trainer(max_steps=N)"},
    gain_basis="none: a statement about loss per FLOP over 400 trainings of dense models, not about speed",
    risk="the ratio is a fit over one data mix; expert models and continued training follow others",
    risk_level="high",
    sources=["https://arxiv.org/abs/2203.15556"],
    system="tongyi",
)
def tokens_are_few(run: Analysis) -> Match | None:
    """A pre-training (long, whole, without an adapter) that stops early."""
    settings = run.run.config
    if settings.get("adapter") or (settings.get("frozen_share") or 0.0) > 0 or run.efficiency.tokens_per_step is None:
        raise NotApplicable
    steps = int(config(run, "max_steps"))
    if steps <= 0:
        raise NotApplicable  # ends by epochs or by hand
    planned = steps * run.efficiency.tokens_per_step
    active = run.run.model.get("parameters_active") or parameters(run)
    ratio = planned / int(active)
    if not PLANNED.is_crossed(planned) or not TOKENS_PER_PARAMETER.is_crossed(ratio):
        return None
    wanted = round(20 * int(active) / run.efficiency.tokens_per_step)
    return Match(
        evidence=[PLANNED.saw(planned), TOKENS_PER_PARAMETER.saw(ratio)],
        gain=no_gain(),
        knobs={"lightning": f"Trainer(max_steps={wanted})  # 20 tokens per active parameter"},
    )


@rule(
    "plan-fewer-nodes",
    area="planning",
    title="much of what the nodes are paid for is waiting for each other",
    symptom="a job over several nodes whose devices communicate for a large part of the step",
    thresholds=[WAITING],
    lever="measure the same job on half of the nodes: tokens per device-hour rise",
    frameworks={"lightning": "Trainer(num_nodes=N)", "pytorch": "torchrun --nnodes=N"},
    gain_basis="none for the rate of this run, which falls; per device the bound is the exposed communication",
    risk="the run takes longer; the global batch or the accumulation changes",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2402.15627"],
    system="baige",
)
def nodes_wait_for_each_other(run: Analysis) -> Match | None:
    """Two nodes or more, with at least 40 % of exposed communication."""
    needs_devices(run)
    machines = node_count(run)
    if machines < 2:
        raise NotApplicable
    exposed = exposed_communication(run)
    if not WAITING.is_crossed(exposed):
        return None
    fewer = machines // 2
    return Match(
        evidence=[WAITING.saw(exposed), Evidence(metric="nodes", value=machines, unit="nodes")],
        gain=no_gain(),
        knobs={
            "lightning": f"Trainer(num_nodes={fewer}, devices={devices_per_node(run)})",
            "pytorch": f"torchrun --nnodes={fewer} --nproc_per_node={devices_per_node(run)} train.py",
        },
    )
