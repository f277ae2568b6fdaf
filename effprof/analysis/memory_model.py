"""What an analysis says of memory: the types behind the `memory` key of `effprof analyze --json`."""

from __future__ import annotations

from typing import Annotated

import msgspec

# Where a device's memory goes, in the order reports show it. On a CPU the last ones are absent.
MEMORY_LINES = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "temporary",
    "cached_free",
    "fragmentation",
    "non_torch",
    "other",
)


def _says(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class RankMemory(msgspec.Struct, kw_only=True):
    """Allocator and process memory of one rank."""

    rank: int
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    process_rss_bytes: Annotated[int | None, _says("largest resident set of the training process seen")] = None


class MemoryAccount(msgspec.Struct, kw_only=True):
    """Memory at its peak, every byte in exactly one line."""

    basis: Annotated[
        str,
        _says(
            "`allocator` (a device's own counters), `tracker` (every tensor of one live step, and the process), "
            "`fake_copy` (predicted tensors, and the process) or `predicted` (tensors alone)"
        ),
    ]
    peak_bytes: Annotated[int, _says("the lines sum to it: of a device, or of the process on a CPU")]
    lines: Annotated[
        dict[str, int],
        _says(
            "NAME: bytes. `gradients` are those there at the peak; `cached_free` and `fragmentation` are reserved by "
            "the allocator and in no tensor; `non_torch` is held beside the allocator, by whomever (contexts, "
            "libraries, other processes); `other` on a CPU is the interpreter, libraries, data and what the C library "
            "has not given back. A line that is not known apart is absent, its bytes lie in `activations` or `other`"
        ),
    ]


class MemoryPrediction(msgspec.Struct, kw_only=True):
    """What was predicted at the first batch, and how it compares."""

    source: Annotated[str, _says("`closed_form` (from the config and the plan) or `fake_copy` (a rehearsed step)")]
    peak_bytes: Annotated[int, _says("tensors of one device at the fullest moment of a step")]
    peak_at: Annotated[str, _says("the moment: `forward`, `backward`, `accumulated`, `optimizer`, `after` backward")]
    activations_bytes: Annotated[int | None, _says("kept by autograd when the backward pass begins")] = None
    measured_bytes: Annotated[int | None, _says("peak of the allocator, or of the tracked step")] = None
    ratio: Annotated[float | None, _says("predicted ÷ measured")] = None


class TensorGroup(msgspec.Struct, kw_only=True):
    """Tensors of one shape and dtype."""

    shape: Annotated[str, _says("shape and dtype")]
    number: int
    bytes: Annotated[int, _says("together")]


class OutOfMemory(msgspec.Struct, kw_only=True):
    """A failure for want of memory: what was asked for and what filled it."""

    rank: int
    message: str
    requested_bytes: Annotated[int | None, _says("the allocation that failed, where the message tells")] = None
    states_bytes: Annotated[int | None, _says("parameters, gradients and optimizer state, as they were then")] = None
    allocated_bytes: Annotated[int | None, _says("in tensors, by the allocator")] = None
    reserved_bytes: int | None = None
    device_free_bytes: int | None = None
    process_rss_bytes: int | None = None
    host_available_bytes: int | None = None
    largest: Annotated[list[TensorGroup], _says("largest tensors that Python still held, states left out")] = []


class MemoryFigures(msgspec.Struct, kw_only=True):
    """Device memory of one device, its largest user first; null where there is no caching allocator."""

    device_total_bytes: int | None = None
    peak_reserved_bytes: Annotated[int | None, _says("largest over ranks: what the allocator took")] = None
    peak_allocated_bytes: Annotated[int | None, _says("largest over ranks: what tensors used")] = None
    parameters_bytes: int | None = None
    gradients_bytes: int | None = None
    optimizer_bytes: int | None = None
    activations_bytes: Annotated[
        int | None,
        _says(
            "peak_allocated less the states that were there at the peak (see `account`) and less `temporary`, where it "
            "is known: activations and other"
        ),
    ] = None
    temporary_bytes: Annotated[
        int | None, _says("at the peak, neither state nor kept by autograd: gradients on their way, logits' copies")
    ] = None
    cached_free_bytes: Annotated[int | None, _says("reserved, in whole free blocks: can be given back")] = None
    fragmentation_bytes: Annotated[
        int | None,
        _says(
            "peak_reserved less peak_allocated; where the allocator tells them apart, only the free parts of blocks "
            "that are in use"
        ),
    ] = None
    non_torch_bytes: Annotated[
        int | None, _says("used on the device beside the allocator: contexts, libraries, other processes")
    ] = None
    alloc_retries: Annotated[int | None, _says("times the allocator had to free its cache and try again")] = None
    ooms: int | None = None
    process_rss_bytes: Annotated[int | None, _says("host memory of one training process, largest over ranks")] = None
    process_peak_rss_bytes: Annotated[int | None, _says("its peak as the kernel counts it, largest over ranks")] = None
    account: Annotated[MemoryAccount | None, _says("of the fullest rank; null where no peak is known")] = None
    predictions: list[MemoryPrediction] = []
    tracked_bytes: Annotated[
        int | None, _says("tensors of one live step at their peak, states included; null unless asked for")
    ] = None
    out_of_memory: Annotated[OutOfMemory | None, _says("the last failure for want of memory")] = None
    ranks: list[RankMemory] = []
