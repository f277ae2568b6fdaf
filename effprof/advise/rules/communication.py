"""Rules on collectives: whether computation hides them, how often and how many bytes are sent."""

from __future__ import annotations

from effprof.advise.facts import (
    kernels,
    micro_batches_per_step,
    needs_ranks,
    step_share,
)
from effprof.advise.gains import gain_from_removed_share
from effprof.advise.layout import (
    communication_share,
    layout,
    message_rate,
    needs_devices,
    needs_kind,
    parameters,
)
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence

DDP_NOTES = "https://pytorch.org/docs/stable/notes/ddp.html"
LIGHTNING_DDP = "https://lightning.ai/docs/pytorch/stable/advanced/ddp_optimizations.html"

REDUCE_EXPOSED = Threshold(
    "kernel_account.communication.all_reduce.exposed_s ÷ window_s",
    0.05,
    "share of the kernel window",
    "the last bucket can never be hidden: 25 MiB of a model of 1 GB are 2 to 3 % of its reduction",
)
HIDDEN = Threshold(
    "kernel_account.communication.all_reduce: hidden ÷ all",
    0.6,
    "share of the all-reduces' time",
    "backward passes are longer than reductions on fast links: what is hidden less waits for a reason",
    relation="<",
)
UNUSED = Threshold(
    "run.parallel.find_unused_parameters (1 is on)",
    0.5,
    "flag",
    "on, every step walks the whole graph and exchanges a map of used parameters; off is torch's default",
)
SENT_AGAIN = Threshold(
    "all-reduced bytes per step ÷ gradients' bytes",
    1.5,
    "times",
    "gradients need to be reduced once a step; buffers and metrics add a few per cent",
)
REDUCE_HEAVY = Threshold(
    "kernel_account.communication.all_reduce.exposed_s ÷ window_s",
    0.20,
    "share of the kernel window",
    "half of less than that is under 10 % of the step, which does not pay for lower precision or other batches",
)
SLOW_LINK = Threshold(
    "kernel_account.communication.all_reduce.message_bytes ÷ union_s",
    12.5e9,
    "bytes/s",
    "100 Gbit/s: Baidu's guide sees no gain of compression on faster links",
    relation="<",
)


@rule(
    "com-overlap-ddp",
    area="communication",
    title="gradients are reduced after the backward pass instead of during it",
    symptom="all-reduces run while no computation does",
    thresholds=[REDUCE_EXPOSED, HIDDEN],
    lever="reduce in buckets while the backward pass runs",
    frameworks={
        "lightning": "DDPStrategy(bucket_cap_mb=N, gradient_as_bucket_view=True, static_graph=True)",
        "pytorch": "DistributedDataParallel(model, bucket_cap_mb=N, gradient_as_bucket_view=True, static_graph=True)",
        "megatron": "--overlap-grad-reduce",
    },
    gain_basis="bound: the exposed all-reduces. The last bucket stays and overlapped kernels slow each other: 25 to 80 "
    "% of it goes; published pairs of runs that had little exposed brought 1 to 6 %",
    risk="static_graph=True needs the same parameters to be used in every step",
    risk_level="low",
    sources=[LIGHTNING_DDP, "https://arxiv.org/abs/2006.15704"],
    change="comm_overlap",
    system="baige",
)
def gradients_are_reduced_late(run: Analysis) -> Match | None:
    """Replicated data parallelism with all-reduces that little computation hides."""
    needs_devices(run)
    if run.run.parallel.get("kind", "ddp") != "ddp" or int(run.run.parallel.get("tensor") or 1) > 1:
        raise NotApplicable
    exposed = communication_share(run, "all_reduce")
    if not REDUCE_EXPOSED.is_crossed(exposed):
        return None
    hidden = 1 - exposed / communication_share(run, "all_reduce", exposed=False)
    if not HIDDEN.is_crossed(hidden):
        return None
    bucket = _bucket(run)
    options = f"bucket_cap_mb={bucket}, gradient_as_bucket_view=True, static_graph=True"
    return Match(
        evidence=[REDUCE_EXPOSED.saw(exposed), HIDDEN.saw(hidden)],
        gain=gain_from_removed_share(exposed, (0.25, 0.5, 0.8)),
        knobs={
            "lightning": f"Trainer(strategy=DDPStrategy({options}))",
            "pytorch": f"DistributedDataParallel(model, {options})",
            "megatron": "--overlap-grad-reduce",
        },
        changes={"bucket_cap_mb": bucket},
    )


def _bucket(run: Analysis) -> int:
    """MiB of a bucket: a tenth of the gradients, 10 to 200. A huge one cannot overlap, a small one is all latency."""
    count = run.run.model.get("parameters_trainable") or run.run.model.get("parameters_total")
    return min(200, max(10, round(int(count) * 4 / 10 / 2**20))) if count else 50


@rule(
    "com-find-unused",
    area="communication",
    title="DDP searches every step for parameters without a gradient",
    symptom="find_unused_parameters=True",
    thresholds=[UNUSED],
    lever="switch the search off; where the same parameters stay unused in every step, static_graph=True",
    frameworks={
        "lightning": 'Trainer(strategy="ddp") or DDPStrategy(static_graph=True)',
        "pytorch": "DistributedDataParallel(model, find_unused_parameters=False)",
        "huggingface": "TrainingArguments(ddp_find_unused_parameters=False)",
    },
    gain_basis="bound: forward and backward. The walk over the graph and one more small all-reduce took 6 to 13 % of "
    "steps of 11 to 140 ms (small networks, two CPU ranks with gloo); longer steps hide it: 1 to 11 % of them",
    risk="training stops with an error if parameters are unused in some steps only",
    risk_level="low",
    sources=[DDP_NOTES, LIGHTNING_DDP],
    system="general",
)
def unused_parameters_are_searched(run: Analysis) -> Match | None:
    """The flag of DistributedDataParallel."""
    needs_ranks(run)
    needs_kind(run, "ddp")
    if not UNUSED.is_crossed(float(layout(run, "find_unused_parameters"))):
        return None
    share = step_share(run, "step.forward") + step_share(run, "step.backward")
    return Match(
        evidence=[UNUSED.saw(1.0)],
        gain=gain_from_removed_share(share, (0.01, 0.06, 0.11)),
        knobs={
            "lightning": 'Trainer(strategy="ddp")  # or DDPStrategy(static_graph=True)',
            "pytorch": "DistributedDataParallel(model, find_unused_parameters=False)",
            "huggingface": "TrainingArguments(ddp_find_unused_parameters=False)",
        },
        changes={"find_unused_parameters": False},
    )


@rule(
    "com-no-sync",
    area="communication",
    title="gradients are reduced for every micro-batch instead of once a step",
    symptom="all-reduced bytes of a step are a multiple of the gradients' bytes",
    thresholds=[SENT_AGAIN],
    lever="reduce only with the last micro-batch (no_sync)",
    frameworks={
        "lightning": "with self.trainer.strategy.model.no_sync(): ... in manual optimization; automatic does it itself",
        "pytorch": "with model.no_sync(): for all but the last micro-batch",
        "huggingface": "with accelerator.accumulate(model):",
    },
    gain_basis="bound: the exposed all-reduces that are sent too often (1 − 1 / times); what is sent with the last "
    "micro-batch is as exposed as before: 60 to 100 %. Published: 1.2 times in a node, 2.2 times over two",
    risk="none: the sum of gradients is the same",
    risk_level="low",
    sources=[
        "https://github.com/huggingface/accelerate/blob/main/docs/source/concept_guides/gradient_synchronization.md",
        "https://pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html",
    ],
    change="comm_overlap",
    system="general",
)
def gradients_are_sent_again(run: Analysis) -> Match | None:
    """Accumulation, and message sizes that say that it does not save communication."""
    needs_devices(run)
    needs_kind(run, "ddp")
    accumulated = micro_batches_per_step(run)
    if accumulated < 2:
        raise NotApplicable
    times = _reduced_bytes_per_step(run) / (_trainable(run) * 4)
    if not SENT_AGAIN.is_crossed(times):
        return None
    exposed = communication_share(run, "all_reduce")
    return Match(
        evidence=[SENT_AGAIN.saw(times), Evidence(metric="run.config.accumulate", value=accumulated, unit="batches")],
        gain=gain_from_removed_share(exposed * (1 - 1 / times), (0.6, 0.85, 1.0)),
        knobs={
            "lightning": "with self.trainer.strategy.model.no_sync():  # all but the last of "
            f"{accumulated} micro-batches",
            "pytorch": f"with model.no_sync():  # all but the last of {accumulated} micro-batches",
            "huggingface": f"Accelerator(gradient_accumulation_steps={accumulated})\n"
            "with accelerator.accumulate(model):",
        },
    )


def _trainable(run: Analysis) -> int:
    count = run.run.model.get("parameters_trainable")
    return int(count) if count else parameters(run)


def _reduced_bytes_per_step(run: Analysis) -> float:
    found = []
    for account in kernels(run):
        family = account.kernels.get("communication.all_reduce")
        if family is not None and family.message_bytes and account.steps:
            found.append(family.message_bytes / len(account.steps))
    if not found:
        raise Missing("the all-reduces' message sizes per step", "a kernel window with NCCL's message sizes")
    return sum(found) / len(found)


@rule(
    "com-compress",
    area="communication",
    title="fp32 gradients travel over a slow link",
    symptom="exposed all-reduces on a link below 100 Gbit/s",
    thresholds=[REDUCE_HEAVY, SLOW_LINK],
    lever="reduce gradients in bf16",
    frameworks={
        "lightning": "DDPStrategy(ddp_comm_hook=default_hooks.bf16_compress_hook)",
        "pytorch": "model.register_comm_hook(None, default_hooks.bf16_compress_hook)",
    },
    gain_basis="bound: half of the all-reduces' bytes, of those that are exposed. Hidden ones shrink first only where "
    "they come first, casts cost time: 60 to 100 % of the half",
    risk="sums of many ranks lose bits in bf16: compare the loss",
    risk_level="medium",
    sources=[
        "https://pytorch.org/docs/stable/ddp_comm_hooks.html",
        "https://cloud.baidu.com/doc/CCE/s/hl305l458",
    ],
    system="baige",
)
def gradients_are_not_compressed(run: Analysis) -> Match | None:
    """DDP without a hook, exposed and slow."""
    needs_devices(run)
    needs_kind(run, "ddp")
    if layout(run, "comm_hook") != "none":
        return None
    exposed = communication_share(run, "all_reduce")
    if not REDUCE_HEAVY.is_crossed(exposed):
        return None
    found = message_rate(run, "all_reduce")
    if found is None:
        raise Missing("the all-reduces' message sizes", "a kernel window with NCCL's message sizes")
    if not SLOW_LINK.is_crossed(found[0]):
        return None
    hook = "default_hooks.bf16_compress_hook"
    return Match(
        evidence=[REDUCE_HEAVY.saw(exposed), SLOW_LINK.saw(found[0])],
        gain=gain_from_removed_share(exposed / 2, (0.6, 0.85, 1.0)),
        knobs={
            "lightning": "from torch.distributed.algorithms.ddp_comm_hooks import default_hooks\n"
            f"Trainer(strategy=DDPStrategy(ddp_comm_hook={hook}))",
            "pytorch": "from torch.distributed.algorithms.ddp_comm_hooks import default_hooks\n"
            f"model.register_comm_hook(None, {hook})",
        },
    )


@rule(
    "com-accumulate",
    area="communication",
    title="every micro-batch pays for a whole exchange of gradients",
    symptom="no accumulation, and the reduction cannot be hidden behind one backward pass",
    thresholds=[REDUCE_HEAVY],
    lever="accumulate micro-batches, so that gradients are exchanged once for several",
    frameworks={
        "lightning": "Trainer(accumulate_grad_batches=4)",
        "pytorch": "with model.no_sync(): for all but every fourth micro-batch",
        "huggingface": "TrainingArguments(gradient_accumulation_steps=4)",
        "deepspeed": '"gradient_accumulation_steps": 4',
    },
    gain_basis="bound: the exposed all-reduces. Four micro-batches share one exchange: three quarters of it go, 70 to "
    "100 % of that. Published at 1,024 devices: 1.35 and 1.55 times",
    risk="the global batch grows fourfold: learning rate and final loss change",
    risk_level="high",
    sources=["https://github.com/InternLM/InternEvo/blob/develop/doc/en/train_performance.md", DDP_NOTES],
    change="grad_accum",
    system="general",
)
def each_micro_batch_is_exchanged(run: Analysis) -> Match | None:
    """No accumulation and heavy all-reduces."""
    needs_devices(run)
    needs_kind(run, "ddp")
    if micro_batches_per_step(run) > 1:
        return None
    exposed = communication_share(run, "all_reduce")
    if not REDUCE_HEAVY.is_crossed(exposed):
        return None
    return Match(
        evidence=[REDUCE_HEAVY.saw(exposed)],
        gain=gain_from_removed_share(exposed, (0.75 * 0.7, 0.75 * 0.85, 0.75)),
        knobs={
            "lightning": "Trainer(accumulate_grad_batches=4)",
            "pytorch": "with model.no_sync():  # all but every fourth micro-batch",
            "huggingface": "TrainingArguments(gradient_accumulation_steps=4)",
            "deepspeed": '"gradient_accumulation_steps": 4',
        },
    )
