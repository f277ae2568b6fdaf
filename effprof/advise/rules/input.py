"""Rules on how batches reach the device."""

from __future__ import annotations

import math

from effprof.advise.facts import config, device_type, needs_accelerator, step_share, telemetry_mean, thread_busy
from effprof.advise.gains import clip_gain, gain_from_removed_share
from effprof.advise.over_time import median_of_phase, median_step_seconds, phase_bins
from effprof.advise.rule import Match, Missing, Threshold, rule
from effprof.analysis.model import Analysis, Evidence, Gain

MAX_WORKERS = 8
WORTH_IT = 0.01  # likely gain: processors that are busy with computing have nothing to give to workers
WAIT = Threshold(
    "account.step.input_wait",
    0.05,
    "share of step time",
    "below it the wait is within what a busy host's scheduling takes; the Kineto plugin's own rule used the same",
)
COPY = Threshold(
    "account.step.host_to_device",
    0.02,
    "share of step time",
    "page-locked copies of a batch of tokens or images take below 1 % of a step; twice that leaves room for the clock",
)
EPOCH_START = Threshold(
    "input wait of epochs' first steps above the median step's ÷ step time",
    0.02,
    "share of step time",
    "starting workers costs seconds per epoch: below a fiftieth of the epoch it is not worth the memory they keep",
)
USUAL_WAIT = Threshold(
    "timeline.phases_s.input_wait, median ÷ step time",
    0.01,
    "share of step time",
    "workers keep up on the median step: what waits are single steps",
    "<",
)
BUSY = Threshold(
    "hardware.telemetry.cpu_percent",
    85,
    "percent",
    "the mean over a run with pauses: processors that are above it have nothing left for more workers",
)
IDLE_HOST = Threshold(
    "hardware.telemetry.cpu_percent",
    50,
    "percent",
    "half of the processors idle while the step waits: it waits for a disk, a network or one thread",
    "<",
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
    gain_basis="the wait's share of the step is the bound; N workers hide what they can load in the rest of the step, "
    "60 to 100 % of it on a host beside an accelerator. On a CPU the wait is split by the training thread's processor "
    "time: what it slept (disk, network) goes to 94 to 100 %, what it worked stays on the processors that compute, and "
    "at most their idle share (telemetry) goes away",
    risk="workers copy the dataset's Python objects: host memory grows with their number",
    risk_level="low",
    sources=[
        "https://github.com/pytorch/kineto/pull/1284",
        "https://docs.pytorch.org/docs/stable/data.html#multi-process-data-loading",
    ],
    change="dataloader",
    system="general",
)
def too_few_workers(run: Analysis) -> Match | None:
    """Input wait above the threshold with fewer workers than processors."""
    share = step_share(run, "step.input_wait")
    workers, processors = int(config(run, "num_workers")), int(config(run, "host_cpus"))
    wanted = max(wanted_workers(processors), _workers_that_sleep(run, share) if not workers else 0)
    if not WAIT.is_crossed(share) or workers >= wanted:
        return None
    gain = _gain_of_workers(run, share, workers, wanted, processors)
    if gain.likely < WORTH_IT:
        return None
    snippet = f"DataLoader(num_workers={wanted}, persistent_workers=True)"
    return Match(
        evidence=[WAIT.saw(share), Evidence(metric="run.config.num_workers", value=workers, unit="processes")],
        gain=gain,
        knobs={
            "lightning": snippet,
            "pytorch": snippet,
            "huggingface": f"TrainingArguments(dataloader_num_workers={wanted}, dataloader_persistent_workers=True)",
        },
        changes={"num_workers": wanted, "persistent_workers": True},
    )


def wanted_workers(processors: int) -> int:
    """Workers that leave the training thread a processor; more than eight seldom load faster."""
    return min(MAX_WORKERS, max(1, processors - 1))


def _workers_that_sleep(run: Analysis, wait: float) -> int:
    """Workers that load in three quarters of the rest of the step, where loading needs hardly a processor; else 0."""
    if device_type(run) != "cpu" or _slept(run, wait) < 0.8 * wait:
        return 0
    return min(MAX_WORKERS, math.ceil(wait / (0.75 * max(0.01, 1 - wait))))


def _gain_of_workers(run: Analysis, share: float, workers: int, wanted: int, processors: int) -> Gain:
    """Workers load beside the step: it ends with the slowest of its own work, the loading and the busy processors."""
    loading = max(share, float(workers))  # processor time of loading ÷ step time; workers that lag behind are all busy
    bound = gain_from_removed_share(share, (0.0, 0.0, 0.0)).bound
    if device_type(run) != "cpu":
        return _clipped(min(share, max(0.0, 1 - loading / wanted)), (0.6, 0.9, 1.0), bound)
    slept = _slept(run, share) if not workers else 0.0
    try:
        idle = 1 - telemetry_mean(run, "cpu_percent") / 100
    except Missing:
        # one thread loads while the others wait: their part of the wait is free, the loading thread's is not
        idle = share * (processors - 1) / processors
    hidden = min(slept + min(share - slept, max(0.0, idle)), max(0.0, 1 - loading / wanted))
    return _clipped(hidden, (0.94, 0.97, 1.0) if slept > share / 2 else (0.7, 0.9, 1.0), bound)


def _slept(run: Analysis, wait: float) -> float:
    """Part of the wait, ÷ step time, in which the training thread, which loads by itself, was on no processor."""
    try:
        return min(wait, 1 - thread_busy(run))  # computing on a CPU it is always on one
    except Missing:
        return 0.0


def _clipped(share: float, fractions: tuple[float, float, float], bound: float) -> Gain:
    gain = gain_from_removed_share(share, fractions)
    return clip_gain(gain.low, gain.likely, gain.high, bound)


@rule(
    "in-pinned",
    area="input",
    title="batches are copied from pageable memory",
    symptom="the copy to the device takes a part of the step and the loader's batches are not page-locked",
    thresholds=[COPY],
    lever="let the loader put batches into page-locked memory, and copy without blocking",
    frameworks={
        "lightning": "DataLoader(pin_memory=True)",
        "pytorch": "DataLoader(pin_memory=True); batch.to(device, non_blocking=True)",
        "huggingface": "TrainingArguments(dataloader_pin_memory=True)",
    },
    gain_basis="the copy's share of the step is the bound; page-locked copies run at the link's rate, two to three "
    "times as fast, and beside the computation where nothing waits for them: 50 to 95 % goes",
    risk="page-locked memory is taken from the host for good",
    risk_level="low",
    sources=["https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html"],
    system="general",
)
def pageable_copies(run: Analysis) -> Match | None:
    """Copies above the threshold without page-locked batches."""
    needs_accelerator(run)
    share, is_pinned = step_share(run, "step.host_to_device"), bool(config(run, "pin_memory"))
    if is_pinned or not COPY.is_crossed(share):
        return None
    return Match(
        evidence=[COPY.saw(share), Evidence(metric="run.config.pin_memory", value=0.0, unit="true or false")],
        gain=gain_from_removed_share(share, (0.5, 0.7, 0.95)),
        knobs={
            "lightning": "DataLoader(pin_memory=True)",
            "pytorch": "DataLoader(pin_memory=True); batch.to(device, non_blocking=True)",
            "huggingface": "TrainingArguments(dataloader_pin_memory=True)",
        },
        changes={"pin_memory": True},
    )


@rule(
    "in-persistent-workers",
    area="input",
    title="workers are started anew for every epoch",
    symptom="the first step of each epoch waits far longer than the others while workers are not kept",
    thresholds=[EPOCH_START],
    lever="keep the workers over epochs",
    frameworks={
        "lightning": "DataLoader(persistent_workers=True)",
        "pytorch": "DataLoader(persistent_workers=True)",
        "huggingface": "TrainingArguments(dataloader_persistent_workers=True)",
    },
    gain_basis="the excess wait of epochs' first steps is the bound; kept workers still fill their queues anew: "
    "70 to 100 % goes",
    risk="workers keep their memory during evaluation",
    risk_level="low",
    sources=["https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader"],
    system="general",
)
def workers_are_not_kept(run: Analysis) -> Match | None:
    """Excess input wait of the steps that open an epoch, from the second epoch on."""
    share, per_epoch = _epoch_start_share(run)
    if not EPOCH_START.is_crossed(share):
        return None
    return Match(
        evidence=[EPOCH_START.saw(share), Evidence(metric="steps per epoch", value=per_epoch, unit="steps")],
        gain=gain_from_removed_share(share, (0.7, 0.9, 1.0)),
        knobs={
            "lightning": "DataLoader(persistent_workers=True)",
            "pytorch": "DataLoader(persistent_workers=True)",
            "huggingface": "TrainingArguments(dataloader_persistent_workers=True)",
        },
        changes={"persistent_workers": True},
    )


def _epoch_start_share(run: Analysis) -> tuple[float, int]:
    """Excess wait of epochs' first steps ÷ step time, and steps per epoch; 0 with kept workers or a single epoch."""
    if int(config(run, "num_workers")) == 0 or bool(config(run, "persistent_workers")):
        return 0.0, 0
    per_epoch = int(config(run, "train_batches")) // max(1, int(config(run, "accumulate")))
    steps = run.efficiency.steps.total
    if per_epoch < 2 or steps <= per_epoch:
        return 0.0, per_epoch
    bins, usual = phase_bins(run, "input_wait"), median_of_phase(run, "input_wait")
    opening = [(last - first + 1, wait) for first, last, wait in bins if _opens_epoch(first, last, per_epoch)]
    excess = sum(max(0.0, wait - usual) * count for count, wait in opening)
    return excess / (steps * median_step_seconds(run) + excess), per_epoch


def _opens_epoch(first: int, last: int, per_epoch: int) -> bool:
    """Whether a step k · per_epoch + 1 with k ≥ 1 lies in first … last."""
    opening = max(1, -(-(first - 1) // per_epoch)) * per_epoch + 1
    return first <= opening <= last


@rule(
    "in-prefetch",
    area="input",
    title="single slow batches stop the step although workers keep up",
    symptom="the median step waits for nothing, the mean does: workers' queues run empty behind slow batches",
    thresholds=[WAIT, USUAL_WAIT],
    lever="let each worker prepare more batches ahead",
    frameworks={
        "lightning": "DataLoader(prefetch_factor=N)",
        "pytorch": "DataLoader(prefetch_factor=N)",
        "huggingface": "TrainingArguments(dataloader_prefetch_factor=N)",
    },
    gain_basis="the wait's share of the step is the bound; a longer queue hides waits that are shorter than it: "
    "30 to 90 % of them, as the record does not tell how long each was",
    risk="host memory grows by the batches that wait",
    risk_level="low",
    sources=["https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader"],
    system="general",
)
def short_queue(run: Analysis) -> Match | None:
    """Waits on few steps with enough workers and the default queue."""
    share = step_share(run, "step.input_wait")
    workers = int(config(run, "num_workers"))
    if workers == 0 or workers < wanted_workers(int(config(run, "host_cpus"))) or not WAIT.is_crossed(share):
        return None
    if EPOCH_START.is_crossed(_epoch_start_share(run)[0]):
        return None  # kept workers come first
    ahead = int(config(run, "prefetch_factor"))
    usual = median_of_phase(run, "input_wait") / median_step_seconds(run)
    if not USUAL_WAIT.is_crossed(usual) or ahead >= 8:
        return None
    return Match(
        evidence=[WAIT.saw(share), USUAL_WAIT.saw(usual)],
        gain=gain_from_removed_share(share, (0.3, 0.6, 0.9)),
        knobs={
            "lightning": "DataLoader(prefetch_factor=8)",
            "pytorch": "DataLoader(prefetch_factor=8)",
            "huggingface": "TrainingArguments(dataloader_prefetch_factor=8)",
        },
        changes={"prefetch_factor": 8},
    )


@rule(
    "in-preprocessing",
    area="input",
    title="the host's processors cannot prepare batches fast enough",
    symptom="the step waits although all workers run and the processors are busy",
    thresholds=[WAIT, BUSY],
    lever="prepare the data once before training, or decode and augment on the device",
    frameworks={
        "lightning": "tokenise or decode in LightningDataModule.prepare_data and store the result",
        "pytorch": "torchvision.transforms.v2 on tensors of the device",
    },
    gain_basis="the wait's share of the step is the bound; work moved to the device costs it time: 30 to 90 % goes",
    risk="augmentation on the device takes its time and memory; stored data fixes random augmentation",
    risk_level="medium",
    sources=[
        "https://docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-profiler-rules.html",
        "https://arxiv.org/abs/2007.06775",
    ],
    system="general",
)
def preprocessing_bound(run: Analysis) -> Match | None:
    """Input wait beside an accelerator, workers running, processors full."""
    return _waits_with_workers(
        run, BUSY, (0.3, 0.6, 0.9), "# in prepare_data: tokenise or decode once, then read the stored tensors"
    )


@rule(
    "in-storage",
    area="input",
    title="batches wait for storage",
    symptom="the step waits although all workers run, and the processors are idle",
    thresholds=[WAIT, IDLE_HOST],
    lever="copy the data to a local disk first, in large files that are read in order",
    frameworks={
        "lightning": "copy in LightningDataModule.prepare_data",
        "pytorch": "numpy.load(path, mmap_mode='r') of a local copy",
    },
    gain_basis="the wait's share of the step is the bound; a local disk or memory map hides 40 to 100 % of it",
    risk="local disk space; sharded files shuffle less well",
    risk_level="low",
    sources=[
        "https://docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-profiler-rules.html",
        "https://arxiv.org/abs/2007.06775",
    ],
    system="general",
)
def storage_bound(run: Analysis) -> Match | None:
    """Input wait beside an accelerator, workers running, processors idle."""
    return _waits_with_workers(
        run, IDLE_HOST, (0.4, 0.8, 1.0), "# in prepare_data: copy the shards to a local disk, and read that copy"
    )


def _waits_with_workers(
    run: Analysis, processors: Threshold, fractions: tuple[float, float, float], knob: str
) -> Match | None:
    needs_accelerator(run)
    share = step_share(run, "step.input_wait")
    if not WAIT.is_crossed(share) or int(config(run, "num_workers")) < wanted_workers(int(config(run, "host_cpus"))):
        return None
    busy = telemetry_mean(run, "cpu_percent")
    if not processors.is_crossed(busy):
        return None
    return Match(
        evidence=[WAIT.saw(share), processors.saw(busy)],
        gain=gain_from_removed_share(share, fractions),
        knobs={"lightning": knob, "pytorch": knob},
    )
