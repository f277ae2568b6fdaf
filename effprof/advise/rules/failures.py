"""Rules on what failures cost: restarts, lost steps, the checkpoint interval, hangs, losses that spike."""

from __future__ import annotations

import math
import statistics

from effprof.advise.facts import wall_share
from effprof.advise.gains import clip_gain, gain_from_removed_share, no_gain
from effprof.advise.over_time import count_events, median_step_seconds, timeline
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence

RESTART = Threshold(
    "account.restart ÷ wall clock",
    0.02,
    "share of wall clock",
    "long runs report above 90 % of their time in training with hundreds of stops: a fiftieth in restarts is much",
)
LOST = Threshold(
    "account.lost_steps ÷ wall clock",
    0.02,
    "share of wall clock",
    "with checkpoints at the Young/Daly interval lost steps cost what the checkpoints do, below a fiftieth each",
)
INTERVAL = Threshold(
    "checkpoint interval ÷ √(2 · save time · time between failures), or its inverse",
    2.0,
    "ratio",
    "the waste is flat around its minimum: half or twice the best interval costs a quarter more",
)
SILENCE = Threshold(
    "time since the last step ÷ 95th percentile of a step",
    10,
    "ratio",
    "evaluations and checkpoints are lines of their own: no step takes ten times as long as the slow ones",
)
SILENCE_S = Threshold("time since the last step", 60, "s", "shorter silences are how jobs end")
SPIKE = Threshold(
    "(loss − median of the 20 bins before) ÷ their median absolute deviation",
    10,
    "ratio",
    "noise stays within 5 deviations, spikes that cost a rollback reach tens",
)
SPIKE_RISE = Threshold("loss ÷ median of the 20 bins before", 1.2, "ratio", "a smaller rise is no setback")
BEFORE = 20
SPIKE_BINS = 2


@rule(
    "good-restart",
    area="goodput",
    title="restarts take long",
    symptom="time between an attempt's end and the next one's first step",
    thresholds=[RESTART],
    lever="restart inside the job, keep caches warm, check nodes before the start",
    frameworks={
        "pytorch": "torchrun --max-restarts N",
        "environment": "TORCHINDUCTOR_CACHE_DIR=PATH that outlives the job",
    },
    gain_basis="restarts' share of the wall clock is the bound; a restart in the job saves queue and start of the "
    "containers, not loading: 30 to 80 % goes",
    risk="a restart in place hides hardware that keeps failing",
    risk_level="medium",
    sources=["https://docs.pytorch.org/docs/stable/elastic/run.html", "https://arxiv.org/abs/2407.21783"],
    system="baige",
)
def long_restarts(run: Analysis) -> Match | None:
    """Restarts above the threshold."""
    _needs_attempts(run)
    share = wall_share(run, "restart")
    if not RESTART.is_crossed(share):
        return None
    return Match(
        evidence=[RESTART.saw(share), Evidence(metric="run.attempts", value=run.run.attempts, unit="attempts")],
        gain=gain_from_removed_share(share, (0.3, 0.5, 0.8), "wall"),
        knobs={"pytorch": f"torchrun --max-restarts {2 * run.run.attempts} train.py"},
    )


@rule(
    "good-lost-steps",
    area="goodput",
    title="steps are lost to failures because checkpoints are far apart",
    symptom="steps that an earlier attempt had made are made again",
    thresholds=[LOST],
    lever="save twice as often",
    frameworks={
        "lightning": "ModelCheckpoint(every_n_train_steps=N)",
        "huggingface": "TrainingArguments(save_steps=N)",
        "megatron": "--save-interval N",
    },
    gain_basis="lost steps' share of the wall clock is the bound; half the interval loses half as much, less the "
    "time of the checkpoints added: 35 to 50 % goes",
    risk="storage, and the time of each checkpoint",
    risk_level="low",
    sources=["https://doi.org/10.1145/361147.361115", "https://doi.org/10.1016/j.future.2004.11.016"],
    system="baige",
)
def lost_steps(run: Analysis) -> Match | None:
    """Lost steps above the threshold, and dearer than the checkpoints that would avoid them."""
    _needs_attempts(run)
    lost, saving = wall_share(run, "lost_steps"), wall_share(run, "checkpoint")
    if not LOST.is_crossed(lost) or saving >= lost / 2:
        return None
    likely = max(0.35, 0.5 - saving / lost)
    return Match(
        evidence=[LOST.saw(lost), Evidence(metric="account.checkpoint ÷ wall clock", value=saving, unit="share")],
        gain=gain_from_removed_share(lost, (0.35, likely, 0.5), "wall"),
        knobs={
            "lightning": "ModelCheckpoint(every_n_train_steps=N), N half of what it is",
            "huggingface": "TrainingArguments(save_steps=N), N half of what it is",
            "megatron": "--save-interval N, half of what it is",
        },
    )


@rule(
    "good-checkpoint-interval",
    area="goodput",
    title="checkpoints are not at the interval that wastes least",
    symptom="the interval is far from √(2 · save time · time between failures)",
    thresholds=[INTERVAL],
    lever="save at the interval of Young and Daly",
    frameworks={
        "lightning": "ModelCheckpoint(train_time_interval=timedelta(seconds=N))",
        "huggingface": "TrainingArguments(save_steps=N)",
        "megatron": "--save-interval N",
    },
    gain_basis="expected waste δ/τ + τ/2M now, less its least, from this run's save time δ, interval τ and mean time "
    "between failures M; few failures tell M only roughly: 40 to 100 % of the difference",
    risk="the time between failures is an estimate from few failures",
    risk_level="low",
    sources=["https://doi.org/10.1145/361147.361115", "https://doi.org/10.1016/j.future.2004.11.016"],
    system="baige",
)
def far_from_daly(run: Analysis) -> Match | None:
    """The interval against Young's first-order optimum."""
    if run.run.attempts < 2:
        raise Missing("a failure to tell the time between failures", "keep all attempts of a job in one run directory")
    saves, saving_s = count_events(run, "checkpoint"), wall_share(run, "checkpoint") * run.account.wall_s
    if saves == 0 or saving_s <= 0:
        raise Missing("a checkpoint's time", "save checkpoints in the training thread, with EfficiencyCallback")
    between = run.account.wall_s / (run.run.attempts - 1)
    cost, interval = saving_s / saves, run.account.wall_s / saves
    best = math.sqrt(2 * cost * between)
    ratio = max(interval / best, best / interval)
    if not INTERVAL.is_crossed(ratio):
        return None
    useful = max(0.01, 1 - _waste(cost, interval, between))
    gained = max(0.0, (1 - _waste(cost, best, between)) / useful - 1)
    steps = max(1, round(best / median_step_seconds(run)))
    return Match(
        evidence=[
            INTERVAL.saw(ratio),
            Evidence(metric="checkpoint interval", value=interval, unit="s"),
            Evidence(metric="best interval", value=best, unit="s"),
            Evidence(metric="time between failures", value=between, unit="s"),
        ],
        gain=clip_gain(0.4 * gained, 0.7 * gained, gained, gained, "wall"),
        knobs={
            "lightning": f"ModelCheckpoint(train_time_interval=timedelta(seconds={round(best)}))",
            "huggingface": f"TrainingArguments(save_steps={steps})",
            "megatron": f"--save-interval {steps}",
        },
    )


def _waste(cost: float, interval: float, between: float) -> float:
    """Young's expected waste, share of the time: saving, and half an interval lost per failure."""
    return cost / interval + interval / (2 * between)


@rule(
    "good-hang",
    area="goodput",
    title="the run stood still before it ended",
    symptom="no step for a long time, then no orderly end",
    thresholds=[SILENCE, SILENCE_S],
    lever="end a job that makes no step, and record where each rank waits",
    frameworks={
        "pytorch": "init_process_group(timeout=timedelta(minutes=N))",
        "environment": "TORCH_NCCL_TRACE_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1",
        "torchtitan": "comm.train_timeout_seconds = N",
    },
    gain_basis="the silence's share of the wall clock is the bound; a timeout of ten slow steps leaves a part of it: "
    "50 to 95 % goes",
    risk="a timeout that is too short ends slow steps",
    risk_level="medium",
    sources=["https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html"],
    system="general",
)
def hang(run: Analysis) -> Match | None:
    """Unexplained silence between the last step and the end of a run that did not complete."""
    if run.run.ended in ("completed", "running"):
        return None
    line, slow = timeline(run), run.efficiency.step_time_s.p95
    if not slow:
        raise Missing("steady steps", "let the run make more steps")
    silent = min(line.wall_s - line.at_s[-1], run.account.lines.get("unattributed", 0.0))
    if not SILENCE.is_crossed(silent / slow) or not SILENCE_S.is_crossed(silent):
        return None
    seconds = max(60, math.ceil(10 * slow))
    return Match(
        evidence=[SILENCE.saw(silent / slow), SILENCE_S.saw(silent)],
        gain=gain_from_removed_share(silent / run.account.wall_s, (0.5, 0.8, 0.95), "wall"),
        knobs={
            "pytorch": f"init_process_group(timeout=timedelta(seconds={seconds}))",
            "environment": "TORCH_NCCL_TRACE_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1",
            "torchtitan": f"comm.train_timeout_seconds = {seconds}",
        },
    )


@rule(
    "good-loss-spike",
    area="goodput",
    title="the loss spiked",
    symptom="the loss rises far above its own noise for several bins of steps, or is not finite",
    thresholds=[SPIKE, SPIKE_RISE],
    lever="clip gradients, warm up longer, keep router and logits in fp32, skip the batches that did it",
    frameworks={
        "lightning": "Trainer(gradient_clip_val=1.0)",
        "pytorch": "torch.nn.utils.clip_grad_norm_(parameters, 1.0)",
        "megatron": "--clip-grad 1.0",
    },
    gain_basis="none for the rate: what a spike costs is the training that it undoes, which a record does not tell",
    risk="clipping hides a fault in the data",
    risk_level="medium",
    sources=["https://arxiv.org/abs/2204.02311", "https://arxiv.org/abs/2412.19437"],
    system="moe",
)
def loss_spike(run: Analysis) -> Match | None:
    """A rise of several bins above the noise before it."""
    band = timeline(run).loss
    not_finite = int(run.run.config.get("losses_not_finite") or 0)
    if band is None:
        raise Missing("the loss of each step", "EfficiencyCallback of this version, on a module that returns its loss")
    found = _highest_spike([value for value in band.median if value is not None])
    if found is None and not not_finite:
        return None
    evidence = [SPIKE.saw(found[0]), SPIKE_RISE.saw(found[1])] if found else []
    if not_finite:
        evidence.append(Evidence(metric="run.config.losses_not_finite", value=not_finite, unit="steps"))
    return Match(
        evidence=evidence,
        gain=no_gain("wall"),
        knobs={
            "lightning": "Trainer(gradient_clip_val=1.0)",
            "pytorch": "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
            "megatron": "--clip-grad 1.0",
        },
    )


def _highest_spike(losses: list[float]) -> tuple[float, float] | None:
    """Deviations and rise of the largest spike that lasts, None without one."""
    best: tuple[float, float] | None = None
    lasting = 0
    for at in range(BEFORE, len(losses)):
        # bins of the spike itself are no measure of what was usual before it
        before = losses[at - lasting - BEFORE : at - lasting]
        if len(before) < BEFORE:
            break
        usual = statistics.median(before)
        noise = statistics.median(abs(value - usual) for value in before)
        height = (losses[at] - usual) / max(noise, 1e-3 * abs(usual), 1e-12)
        rise = losses[at] / usual if usual > 0 else 0.0
        lasting = lasting + 1 if SPIKE.is_crossed(height) and SPIKE_RISE.is_crossed(rise) else 0
        if lasting >= SPIKE_BINS and (best is None or height > best[0]):
            best = (height, rise)
    return best


def _needs_attempts(run: Analysis) -> None:
    if run.run.attempts < 2:
        raise NotApplicable
