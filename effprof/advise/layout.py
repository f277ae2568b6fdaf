"""What rules ask of a job's layout and of its communication: how it is spread over devices, and what that costs."""

from __future__ import annotations

from typing import Any

from effprof.advise.facts import CALLBACK, kernels, needs_accelerator, needs_ranks, nodes
from effprof.advise.rule import Missing, NotApplicable
from effprof.analysis.model import Analysis

SHARDED = ("fsdp", "fsdp2", "deepspeed")
_DTYPE_BYTES = {"bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}


def layout(run: Analysis, key: str) -> Any:
    """A fact of the job's layout; raises `Missing` where it was not recorded."""
    if key not in run.run.parallel:
        raise Missing(f"the layout's `{key}`", CALLBACK)
    return run.run.parallel[key]


def needs_devices(run: Analysis) -> None:
    """Ends a rule that has nothing to say about one device or about CPUs."""
    needs_ranks(run)
    needs_accelerator(run)


def needs_kind(run: Analysis, *kinds: str) -> str:
    """How the model is replicated or sharded; ends a rule that is about other ways."""
    kind = str(layout(run, "kind"))
    if kind not in kinds:
        raise NotApplicable
    return kind


def devices_per_node(run: Analysis) -> int:
    """Devices that share a node's fast links."""
    known = run.run.parallel.get("devices_per_node")
    return int(known) if known else max(1, run.run.world_size // node_count(run))


def node_count(run: Analysis) -> int:
    """Machines of the job."""
    return max(int(run.run.parallel.get("nodes") or 1), nodes(run))


def parameters(run: Analysis) -> int:
    """Parameters of the whole model."""
    count = run.run.model.get("parameters_total")
    if not count:
        raise Missing("the model's parameters", CALLBACK)
    return int(count)


def gathered_bytes(run: Analysis) -> int:
    """Bytes of all parameters in the dtype in which they are gathered; fp32 where the run did not say."""
    return parameters(run) * _DTYPE_BYTES.get(str(run.run.parallel.get("parameter_dtype")), 4)


def communication_share(run: Analysis, *kinds: str, exposed: bool = True) -> float:
    """Share of the kernel window in which collectives of these kinds ran, mean over ranks, 0 … 1.

    Args:
        kinds: as in `communication.KIND`, such as "all_gather"; all kinds without any.
        exposed: only while no computation hid them.
    """
    accounts = kernels(run)
    shares = []
    for account in accounts:
        found = [
            family
            for name, family in account.kernels.items()
            if name.startswith("communication") and (not kinds or name.partition(".")[2] in kinds)
        ]
        seconds = sum((family.exposed_s or 0.0) if exposed else family.union_s for family in found)
        shares.append(min(1.0, seconds / account.window_s) if account.window_s > 0 else 0.0)
    return sum(shares) / len(shares)


def exposed_communication(run: Analysis) -> float:
    """Share of the kernel window in which a device did nothing but communicate, pipeline traffic left out."""
    accounts = kernels(run)
    shares = [
        max(0.0, account.communication_exposed_s - (account.pipeline_bubble_s or 0.0)) / account.window_s
        for account in accounts
        if account.window_s > 0
    ]
    return sum(shares) / len(shares) if shares else 0.0


def message_rate(run: Analysis, kind: str) -> tuple[float, float] | None:
    """(bytes/s, mean bytes of a message) of a kind of collective while it ran; None without recorded sizes."""
    sizes, seconds, count = 0.0, 0.0, 0
    for account in kernels(run):
        family = account.kernels.get(f"communication.{kind}")
        if family and family.message_bytes and family.union_s > 0:
            sizes, seconds, count = sizes + family.message_bytes, seconds + family.union_s, count + family.count
    return (sizes / seconds, sizes / count) if count else None
