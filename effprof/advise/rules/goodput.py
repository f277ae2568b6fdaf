"""Rules on the wall clock outside the steps: checkpoints, evaluation, start-up, logging, callbacks."""

from __future__ import annotations

from effprof.advise.facts import config, step_share, wall_share
from effprof.advise.gains import gain_from_removed_share
from effprof.advise.rule import Match, Threshold, rule
from effprof.analysis.model import Analysis

CHECKPOINT = Threshold(
    "account.checkpoint ÷ wall clock",
    0.02,
    "share of wall clock",
    "checkpoints in the background block for the copy to the host alone, well below a fiftieth of the interval",
)
EVALUATION = Threshold(
    "account.evaluation ÷ wall clock",
    0.10,
    "share of wall clock",
    "a tenth of the time buys a curve that half as many points would show too",
)
STARTUP = Threshold(
    "account.startup + compile ÷ wall clock",
    0.05,
    "share of wall clock",
    "a run that is long enough to matter starts in a twentieth of its time",
)
STARTUP_S = Threshold(
    "account.startup + compile", 300, "s", "processes, data and a warm compiler cache take below five minutes"
)
LOGGING = Threshold(
    "account.logging ÷ wall clock", 0.02, "share of wall clock", "loggers at their default interval stay below 1 %"
)
CALLBACKS = Threshold(
    "account.step.other",
    0.05,
    "share of step time",
    "loop and hooks of a Trainer take tens of microseconds; a twentieth of a step is somebody's work",
)
RARE = Threshold(
    "run.config.log_every_n_steps",
    10,
    "steps",
    "logging on almost every step is a rule of its own (ker-log-often): here each logging is what is dear",
    ">=",
)
USUAL_LOG_INTERVAL = 50  # Lightning's own default of log_every_n_steps


@rule(
    "good-async-checkpoint",
    area="goodput",
    title="training stands still while checkpoints are written",
    symptom="checkpoints block the training thread",
    thresholds=[CHECKPOINT],
    lever="write checkpoints in the background",
    frameworks={
        "lightning": "Trainer(plugins=[AsyncCheckpointIO()])",
        "pytorch": "torch.distributed.checkpoint.async_save(state_dict, checkpoint_id=PATH)",
        "megatron": "--async-save",
        "torchtitan": 'checkpoint.async_mode = "async_with_pinned_mem"',
    },
    gain_basis="the checkpoints' share of the wall clock is the bound; the copy to the host still blocks: "
    "50 to 95 % goes",
    risk="a copy of the state in host memory; a crash loses the checkpoint being written",
    risk_level="low",
    sources=[
        "https://docs.pytorch.org/docs/stable/distributed.checkpoint.html",
        "https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.plugins.io.AsyncCheckpointIO.html",
    ],
    system="tongyi",
)
def blocking_checkpoints(run: Analysis) -> Match | None:
    """Checkpoints above the threshold that are not written in the background."""
    share = wall_share(run, "checkpoint")
    if not CHECKPOINT.is_crossed(share) or bool(config(run, "async_checkpoint")):
        return None
    return Match(
        evidence=[CHECKPOINT.saw(share)],
        gain=gain_from_removed_share(share, (0.5, 0.8, 0.95), "wall"),
        knobs={
            "lightning": "from pytorch_lightning.plugins.io import AsyncCheckpointIO\n"
            "Trainer(plugins=[AsyncCheckpointIO()])",
            "pytorch": "torch.distributed.checkpoint.async_save(state_dict, checkpoint_id=path)",
            "megatron": "--async-save",
            "torchtitan": 'checkpoint.async_mode = "async_with_pinned_mem"',
        },
    )


@rule(
    "good-evaluation",
    area="goodput",
    title="evaluation takes a large part of the run",
    symptom="evaluation runs often, or over many batches",
    thresholds=[EVALUATION],
    lever="evaluate half as often, or on half of the batches",
    frameworks={
        "lightning": "Trainer(val_check_interval=N) or Trainer(limit_val_batches=N)",
        "huggingface": "TrainingArguments(eval_steps=N)",
        "megatron": "--eval-interval N --eval-iters M",
    },
    gain_basis="evaluation's share of the wall clock is the bound; half of the evaluations cost half of the time, less "
    "what starting loaders costs each: 45 to 50 % goes",
    risk="a regression is seen later",
    risk_level="low",
    sources=["https://lightning.ai/docs/pytorch/stable/common/trainer.html"],
    system="general",
)
def much_evaluation(run: Analysis) -> Match | None:
    """Evaluation above the threshold."""
    share = wall_share(run, "evaluation")
    if not EVALUATION.is_crossed(share):
        return None
    batches = run.run.config.get("val_batches")
    half = f"limit_val_batches={max(1, batches // 2)}" if isinstance(batches, int) and batches > 1 else ""
    knob = f"Trainer({half})" if half else "Trainer(val_check_interval=N), N twice what it is"
    return Match(
        evidence=[EVALUATION.saw(share)],
        gain=gain_from_removed_share(share, (0.45, 0.49, 0.5), "wall"),
        knobs={
            "lightning": knob,
            "huggingface": "TrainingArguments(eval_steps=N), N twice what it is",
            "megatron": "--eval-interval N, twice what it is",
        },
    )


@rule(
    "good-startup",
    area="goodput",
    title="start-up and compilation take a large part of the run",
    symptom="minutes pass before the first step",
    thresholds=[STARTUP, STARTUP_S],
    lever="keep compiler caches, dataset indexes and images between starts",
    frameworks={
        "environment": "TORCHINDUCTOR_CACHE_DIR=PATH that outlives the job",
        "pytorch": "torch.compiler.save_cache_artifacts() / load_cache_artifacts()",
    },
    gain_basis="their share of the wall clock is the bound; a warm start leaves imports and loading: 20 to 70 % goes",
    risk="a stale cache",
    risk_level="low",
    sources=[
        "https://docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-profiler-rules.html",
        "https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_tutorial.html",
    ],
    system="general",
)
def long_startup(run: Analysis) -> Match | None:
    """Start-up and compilation long, and long beside the run."""
    share = wall_share(run, "startup") + wall_share(run, "compile")
    seconds = share * run.account.wall_s
    if not STARTUP.is_crossed(share) or not STARTUP_S.is_crossed(seconds):
        return None
    return Match(
        evidence=[STARTUP.saw(share), STARTUP_S.saw(seconds)],
        gain=gain_from_removed_share(share, (0.2, 0.45, 0.7), "wall"),
        knobs={
            "environment": "TORCHINDUCTOR_CACHE_DIR=$HOME/.cache/torchinductor",
            "pytorch": "torch.compiler.load_cache_artifacts(open(path, 'rb').read())",
        },
    )


@rule(
    "good-logging",
    area="goodput",
    title="each logging stops the training for long",
    symptom="loggers take a share of the wall clock although the interval is not short",
    thresholds=[LOGGING, RARE],
    lever="log less often",
    frameworks={
        "lightning": "Trainer(log_every_n_steps=N)",
        "huggingface": "TrainingArguments(logging_steps=N)",
        "megatron": "--log-interval N",
    },
    gain_basis="logging's share of the wall clock is the bound; its time falls as the interval grows, less what is "
    "done at every step all the same: 80 to 100 % of that",
    risk="coarser curves",
    risk_level="low",
    sources=["https://lightning.ai/docs/pytorch/stable/extensions/logging.html"],
    system="general",
)
def dear_logging(run: Analysis) -> Match | None:
    """Logging above the threshold, at an interval that can grow."""
    share, interval = wall_share(run, "logging"), max(1, int(config(run, "log_every_n_steps")))
    if not LOGGING.is_crossed(share) or not RARE.is_crossed(interval):
        return None
    wanted = USUAL_LOG_INTERVAL if interval < USUAL_LOG_INTERVAL else 4 * interval
    gone = 1 - interval / wanted
    return Match(
        evidence=[LOGGING.saw(share), RARE.saw(interval)],
        gain=gain_from_removed_share(share, (0.8 * gone, 0.95 * gone, gone), "wall"),
        knobs={
            "lightning": f"Trainer(log_every_n_steps={wanted})",
            "huggingface": f"TrainingArguments(logging_steps={wanted})",
            "megatron": f"--log-interval {wanted}",
        },
        changes={"log_every_n_steps": wanted},
    )


@rule(
    "good-callbacks",
    area="goodput",
    title="callbacks or a profiler take a part of every step",
    symptom="time between the phases of a step, in the loop's hooks",
    thresholds=[CALLBACKS],
    lever="leave out the profiler and callbacks that work on every batch, or let them work every Nth",
    frameworks={"lightning": "Trainer(profiler=None, callbacks=[...])"},
    gain_basis="time outside the step's phases is the bound; the loop's own part stays: 40 to 90 % goes",
    risk="what the callback did is not done",
    risk_level="medium",
    sources=["https://lightning.ai/docs/pytorch/stable/tuning/profiler_basic.html"],
    system="general",
)
def busy_hooks(run: Analysis) -> Match | None:
    """Time in hooks above the threshold, with something there that could be left out."""
    share = step_share(run, "step.other")
    if not CALLBACKS.is_crossed(share):
        return None
    profiler = str(run.run.config.get("profiler", "none"))
    has_profiler = profiler not in ("none", "PassThroughProfiler")
    callbacks = [str(name) for name in config(run, "callbacks")]
    if not has_profiler and not callbacks:
        return None
    removed = [f"profiler={profiler}"] if has_profiler else []
    return Match(
        title=f"{' and '.join([*removed, *callbacks])} may take a part of every step",
        evidence=[CALLBACKS.saw(share)],
        gain=gain_from_removed_share(share, (0.4, 0.7, 0.9)),
        knobs={"lightning": "Trainer(profiler=None)" if has_profiler else f"Trainer(callbacks=[])  # {callbacks}"},
        changes={} if has_profiler else {"disable_callbacks": callbacks},
    )
