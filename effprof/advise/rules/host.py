"""Rules on what the host does inside the training loop beside launching kernels."""

from __future__ import annotations

from effprof.advise.facts import config, needs_accelerator, wall_share
from effprof.advise.gains import clip_gain, gain_from_removed_share
from effprof.advise.products import model_share
from effprof.advise.rule import Match, Threshold, rule
from effprof.analysis.model import Analysis, Gain

COLLECTOR = Threshold(
    "run.config.gc_share",
    0.02,
    "share of step time",
    "collections of the young generations take a few thousandths; full collections in the loop take more",
)
LOGGING = Threshold(
    "account.logging",
    0.01,
    "share of the wall clock",
    "logging every fiftieth step takes less than a thousandth: a hundredth is paid for logging too often",
)
OFTEN = Threshold(
    "run.config.log_every_n_steps",
    10,
    "steps",
    "Lightning's default is 50: a curve shows no more from every step",
    "<",
)
ANOMALY = Threshold("run.config.detect_anomaly", 0.5, "true or false", "a debugging aid: never on in a measured run")
DETERMINISTIC = Threshold(
    "run.config.deterministic", 0.5, "true or false", "asks for slower kernels on every step: on only for a reason"
)
# Time that anomaly detection adds per operator, in units of one that touches no data.
TRACE_AND_SEARCH = (22.0, 27.0, 31.0)


@rule(
    "ker-gc",
    area="kernels",
    title="Python's garbage collector stops the loop",
    symptom="collections take a fiftieth of the time in steps or more",
    thresholds=[COLLECTOR],
    lever="collect at chosen steps only",
    frameworks={"lightning": "gc.disable(); gc.collect() in a Callback every N steps", "pytorch": "gc.freeze()"},
    gain_basis="the measured share of the collector is the bound; the collections that stay take 5 to 20 % of it. "
    "Beside an accelerator with a full queue part of it is hidden: from 30 % on",
    risk="cycles stay in memory until the next collection",
    risk_level="low",
    sources=["https://docs.python.org/3/library/gc.html", "https://arxiv.org/abs/2402.15627"],
    system="general",
)
def collector(run: Analysis) -> Match | None:
    """The collector's share of the steps above its limit."""
    share = float(config(run, "gc_share"))
    if not COLLECTOR.is_crossed(share):
        return None
    is_cpu = bool(run.hardware.devices) and run.hardware.devices[0].type == "cpu"
    return Match(
        evidence=[COLLECTOR.saw(share)],
        gain=gain_from_removed_share(min(share, 1.0), (0.7 if is_cpu else 0.3, 0.85, 0.95)),
        knobs={"lightning": "gc.disable(); gc.freeze()", "pytorch": "gc.disable(); gc.freeze()"},
        changes={"gc_every_n_steps": 100},
    )


@rule(
    "ker-log-often",
    area="kernels",
    title="the loop logs on almost every step",
    symptom="logging takes a hundredth of the wall clock, at an interval of a few steps",
    thresholds=[LOGGING, OFTEN],
    lever="log every fifty steps",
    frameworks={
        "lightning": "Trainer(log_every_n_steps=50)",
        "huggingface": "TrainingArguments(logging_steps=50)",
    },
    gain_basis="the logging line of the account is the bound; every fiftieth step leaves 2 to 20 % of it",
    risk="fewer points on the curve",
    risk_level="low",
    sources=["https://lightning.ai/docs/pytorch/stable/common/trainer.html#log-every-n-steps"],
    system="general",
)
def frequent_logging(run: Analysis) -> Match | None:
    """The logging line above its limit with a short interval."""
    share, every = wall_share(run, "logging"), int(config(run, "log_every_n_steps"))
    if not LOGGING.is_crossed(share) or not OFTEN.is_crossed(every):
        return None
    return Match(
        evidence=[LOGGING.saw(share), OFTEN.saw(every)],
        gain=gain_from_removed_share(share, (0.75, 0.9, 0.98), basis="wall"),
        knobs={
            "lightning": "Trainer(log_every_n_steps=50)",
            "huggingface": "TrainingArguments(logging_steps=50)",
        },
        changes={"log_every_n_steps": 50},
    )


@rule(
    "ker-anomaly",
    area="kernels",
    title="autograd's anomaly detection is on",
    symptom="every operation keeps its stack trace and every gradient is searched for NaN",
    thresholds=[ANOMALY],
    lever="switch it off",
    frameworks={"lightning": "Trainer(detect_anomaly=False)", "pytorch": "torch.autograd.set_detect_anomaly(False)"},
    gain_basis="forward and backward's share of the step is the bound. On a CPU with a kernel window the traces and "
    "searches take 22 to 31 times the dispatch of each operator (benchmarks/anomaly_cost.py: 27 to 31 at a Trainer's "
    "depth, 18 to 26 without); else 10 to 60 % of the bound's time, without a published pair: verify it",
    risk="a NaN is noticed later",
    risk_level="low",
    sources=["https://docs.pytorch.org/docs/stable/autograd.html#anomaly-detection"],
    system="general",
)
def anomaly_detection(run: Analysis) -> Match | None:
    """The setting itself is the symptom."""
    is_on = float(bool(config(run, "detect_anomaly")))
    if not ANOMALY.is_crossed(is_on):
        return None
    return Match(
        evidence=[ANOMALY.saw(is_on)],
        gain=_gain_without_traces(run),
        knobs={"lightning": "Trainer(detect_anomaly=False)", "pytorch": "torch.autograd.set_detect_anomaly(False)"},
        changes={"detect_anomaly": False},
    )


def _gain_without_traces(run: Analysis) -> Gain:
    """What keeping a stack trace per operator and searching every gradient for NaN costs."""
    computing = min(1.0, model_share(run))
    if run.operators is None or not run.efficiency.step_time_s.median:
        return gain_from_removed_share(computing, (0.1, 0.3, 0.6))
    calls = run.operators.per_step * run.operators.dispatch_s / run.efficiency.step_time_s.median
    low, likely, high = (gain_from_removed_share(times * calls, (1, 1, 1)).high for times in TRACE_AND_SEARCH)
    return clip_gain(low, likely, high, gain_from_removed_share(computing, (1, 1, 1)).bound)


@rule(
    "ker-deterministic",
    area="kernels",
    title="deterministic algorithms are on",
    symptom="torch refuses the faster kernels that add in any order",
    thresholds=[DETERMINISTIC],
    lever="switch it off outside of tests",
    frameworks={"lightning": "Trainer(deterministic=False)", "pytorch": "torch.use_deterministic_algorithms(False)"},
    gain_basis="forward and backward's share of the step is the bound; 0 to 10 % of it is the slower kernels', "
    "as few operators have two forms and no pair is published: verify it",
    risk="two runs of the same seed differ in the last bits",
    risk_level="low",
    sources=["https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html"],
    system="general",
)
def deterministic(run: Analysis) -> Match | None:
    """The setting beside an accelerator."""
    needs_accelerator(run)
    is_on = float(bool(config(run, "deterministic")))
    if not DETERMINISTIC.is_crossed(is_on):
        return None
    return Match(
        evidence=[DETERMINISTIC.saw(is_on)],
        gain=gain_from_removed_share(min(1.0, model_share(run)), (0.0, 0.04, 0.1)),
        knobs={"lightning": "Trainer(deterministic=False)", "pytorch": "torch.use_deterministic_algorithms(False)"},
        changes={"deterministic": False},
    )
