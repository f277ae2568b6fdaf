"""Facts of a DataLoader, or of anything that has its attributes."""

from __future__ import annotations

import os
from typing import Any

from effprof.measure.facts.read import attribute, class_name, read_facts

# Samplers whose class tells the order; of any other nothing is claimed.
_RANDOM = ("RandomSampler", "SubsetRandomSampler", "WeightedRandomSampler")
_ORDERED = ("SequentialSampler",)


def loader_facts(loader: Any) -> dict[str, Any]:
    """Settings of a training loader, by their names in `effprof.runlog.settings`; empty without one."""
    return {} if loader is None else read_facts(_READERS, loader)


def host_cpus() -> int | None:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _batch_size(loader: Any) -> Any:
    size = getattr(loader, "batch_size", None)
    return size if size is not None else getattr(getattr(loader, "batch_sampler", None), "batch_size", None)


def _sampler(loader: Any) -> Any:
    batches = getattr(loader, "batch_sampler", None)
    # Lightning and torch wrap a plain sampler into their own BatchSampler, which says nothing
    own = None if batches is None or "BatchSampler" in type(batches).__name__ else batches
    return own if own is not None else getattr(batches, "sampler", None) or getattr(loader, "sampler", None)


def _shuffle(loader: Any) -> bool | None:
    sampler = _sampler(loader)
    name = type(sampler).__name__
    if name in _RANDOM:
        return True
    if name in _ORDERED:
        return False
    declared = getattr(sampler, "shuffle", None)  # distributed samplers say it themselves
    return declared if isinstance(declared, bool) else None


def _drop_last(loader: Any) -> Any:
    batches = getattr(loader, "batch_sampler", None)
    return getattr(batches, "drop_last", None) if batches is not None else getattr(loader, "drop_last", None)


def _collate(loader: Any) -> str | None:
    collate: Any = getattr(loader, "collate_fn", None)
    while hasattr(collate, "func"):  # functools.partial
        collate = collate.func
    return None if collate is None else getattr(collate, "__name__", None) or type(collate).__name__


def _dataset_kind(loader: Any) -> str | None:
    dataset = getattr(loader, "dataset", None)
    if dataset is None:
        return None
    import torch.utils.data

    if isinstance(dataset, torch.utils.data.IterableDataset):
        return "iterable"
    return "map" if hasattr(dataset, "__getitem__") else "iterable"


def _samples(loader: Any) -> int | None:
    return len(loader.dataset) if _dataset_kind(loader) == "map" else None


_READERS = {
    "num_workers": attribute("num_workers"),
    "pin_memory": attribute("pin_memory"),
    "persistent_workers": attribute("persistent_workers"),
    "prefetch_factor": attribute("prefetch_factor"),
    "micro_batch": _batch_size,
    "drop_last": _drop_last,
    "shuffle": _shuffle,
    "sampler": lambda loader: class_name(_sampler(loader)),
    "collate": _collate,
    "dataset": lambda loader: class_name(getattr(loader, "dataset", None)),
    "dataset_kind": _dataset_kind,
    "dataset_samples": _samples,
    "loader": class_name,
}
