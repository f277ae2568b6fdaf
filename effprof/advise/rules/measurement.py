"""Rules on the measurement itself: figures that cannot be right, and what a better record would need."""

from __future__ import annotations

from effprof.advise.facts import needs_accelerator, wall_share
from effprof.advise.gains import gain_from_removed_share, no_gain
from effprof.advise.rule import Match, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence

ABOVE_PEAK = Threshold(
    "warnings: mfu_above_peak", 0, "warnings", "no device does more than its dense peak: FLOPs or peak are wrong"
)
STEADY = Threshold(
    "efficiency.steps.steady", 5, "steps", "fewer carry no interval: the figures say little about the next hour", "<"
)
READINGS = Threshold(
    "hardware.telemetry: readings with a value",
    1,
    "readings",
    "without any, clocks, power and throttling are dark",
    "<",
)
OVERHEAD = Threshold(
    "account.effprof ÷ wall clock", 0.01, "share of wall clock", "the profiler's own goal is below a thousandth"
)
LONG_S = Threshold("account.wall_s", 600, "s", "what a window costs once is a large share of a short run alone")
OVERHEAD_S = Threshold("account.effprof", 5, "s", "starting and closing a record takes a second or two, once")


@rule(
    "meas-above-peak",
    area="measurement",
    title="MFU came out above the peak and was refused",
    symptom="more FLOP/s than the device has",
    thresholds=[ABOVE_PEAK],
    lever="give the dense peak of the dtype that the matrix products run in, and check the model's FLOPs",
    frameworks={"lightning": "EfficiencyCallback(peak_tflops=T)", "environment": "effprof analyze --peak-tflops T RUN"},
    gain_basis="none: it corrects a figure",
    risk="none",
    risk_level="low",
    sources=["https://github.com/Lightning-AI/pytorch-lightning/issues/21677"],
    system="general",
)
def above_peak(run: Analysis) -> Match | None:
    """The warning that the analysis gave."""
    count = sum(warning.code == "mfu_above_peak" for warning in run.warnings)
    if not ABOVE_PEAK.is_crossed(count):
        return None
    return Match(
        evidence=[ABOVE_PEAK.saw(count)],
        gain=no_gain(),
        knobs={"environment": "effprof device; effprof analyze --peak-tflops T RUN"},
    )


@rule(
    "meas-few-steps",
    area="measurement",
    title="too few steady steps to rest a figure on",
    symptom="the run ended within its warm-up",
    thresholds=[STEADY],
    lever="let the run make more steps before reading its figures",
    frameworks={"lightning": "Trainer(max_steps=N)"},
    gain_basis="none: it makes figures reliable",
    risk="none",
    risk_level="low",
    sources=["https://doi.org/10.1145/2491894.2464160"],
    system="general",
)
def few_steps(run: Analysis) -> Match | None:
    """Fewer steady steps than an interval needs."""
    steps = run.efficiency.steps
    if not STEADY.is_crossed(steps.steady):
        return None
    return Match(
        evidence=[STEADY.saw(steps.steady), Evidence(metric="efficiency.steps.total", value=steps.total, unit="steps")],
        gain=no_gain(),
        knobs={"lightning": f"Trainer(max_steps={max(50, 2 * steps.total)})"},
    )


@rule(
    "meas-telemetry",
    area="measurement",
    title="nothing is known of clocks, power and throttling",
    symptom="no telemetry reading has a value",
    thresholds=[READINGS],
    lever="record telemetry",
    frameworks={"lightning": "EfficiencyCallback(telemetry=True)"},
    gain_basis="none: it lets rules on throttling, power and processors look at the run",
    risk="one sampler process per node",
    risk_level="low",
    sources=["https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html"],
    system="general",
)
def no_telemetry(run: Analysis) -> Match | None:
    """An accelerator without any reading."""
    if run.source is not None:  # another tool's log never has any
        raise NotApplicable
    needs_accelerator(run)
    known = sum(each.mean is not None or each.increase is not None for each in run.hardware.telemetry)
    if not READINGS.is_crossed(known):
        return None
    return Match(
        evidence=[READINGS.saw(known)],
        gain=no_gain(),
        knobs={"lightning": "EfficiencyCallback(telemetry=True)"},
    )


@rule(
    "meas-overhead",
    area="measurement",
    title="the profiler itself takes a share of the run",
    symptom="effprof's own line of the account is large",
    thresholds=[OVERHEAD, OVERHEAD_S, LONG_S],
    lever="record kernel windows less often",
    frameworks={"lightning": "EfficiencyCallback(kernel_window=False)"},
    gain_basis="the line is the bound; without kernel windows 80 to 100 % of it goes",
    risk="no kernel account",
    risk_level="low",
    sources=["https://docs.pytorch.org/docs/stable/profiler.html"],
    system="general",
)
def own_overhead(run: Analysis) -> Match | None:
    """effprof's line above its goal, with kernel windows that can be left out."""
    if not run.efficiency.steps.profiled:
        raise NotApplicable
    share = wall_share(run, "effprof")
    wall_s = run.account.wall_s
    seconds = share * wall_s
    if not (OVERHEAD.is_crossed(share) and OVERHEAD_S.is_crossed(seconds) and LONG_S.is_crossed(wall_s)):
        return None
    return Match(
        evidence=[OVERHEAD.saw(share), OVERHEAD_S.saw(seconds), LONG_S.saw(wall_s)],
        gain=gain_from_removed_share(share, (0.8, 0.9, 1.0), "wall"),
        knobs={"lightning": "EfficiencyCallback(kernel_window=False)"},
    )
