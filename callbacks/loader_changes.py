"""A DataLoader made again with other settings: what a trial changes about how batches are made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any

READ_SAMPLES, READ_S = 20_000, 10.0  # lengths are read from the samples themselves: a trial needs no more than these
READ_AHEAD = 256  # samples, whatever they take: windows that grouping can work in


class Refused(Exception):
    """A change that does not fit this training, with the reason."""


def rebuild(loader: Any, **changed: Any) -> Any:
    """A loader over the same samples, with some of its arguments changed.

    Args:
        loader: a `torch.utils.data.DataLoader`.
        changed: arguments of DataLoader; `batch_size` keeps the sampler and its order.

    Raises:
        Refused: the loader makes its batches in a way that these arguments do not reach.
    """
    from torch.utils.data import BatchSampler, DataLoader, IterableDataset

    if not isinstance(loader, DataLoader):
        raise Refused(f"the training data come from a {type(loader).__name__}, not from a DataLoader")
    arguments: dict[str, Any] = {
        name: getattr(loader, name)
        for name in ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator")
    }
    arguments["multiprocessing_context"] = loader.multiprocessing_context
    arguments["persistent_workers"] = loader.persistent_workers
    arguments["prefetch_factor"] = loader.prefetch_factor
    arguments["pin_memory_device"] = loader.pin_memory_device
    if isinstance(loader.dataset, IterableDataset):
        arguments |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    elif loader.batch_sampler is None:
        arguments |= {"batch_size": None, "sampler": loader.sampler}
    elif type(loader.batch_sampler) is BatchSampler or "sampler" in changed:
        arguments |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last, "sampler": loader.sampler}
    elif "batch_size" in changed:
        raise Refused(f"batches are made by a {type(loader.batch_sampler).__name__}")
    else:
        arguments["batch_sampler"] = loader.batch_sampler
    if "batch_size" in changed and loader.batch_sampler is None:
        raise Refused("the dataset gives whole batches, so their size is its own")
    arguments |= changed
    if not arguments["num_workers"]:
        arguments |= {"persistent_workers": False, "prefetch_factor": None, "multiprocessing_context": None}
    return DataLoader(loader.dataset, **arguments)


def with_trimmed_padding(loader: Any) -> Any:
    """The loader with batches cut after the last column that any row's attention mask keeps.

    Raises:
        Refused: a batch has no two-dimensional `attention_mask`, or nothing it could cut.
    """
    collate = loader.collate_fn

    def trimmed(samples: list[Any]) -> Any:
        return trim_padding(collate(samples))

    return rebuild(loader, collate_fn=trimmed)


def trim_padding(batch: Any) -> Any:
    """The batch without the trailing columns that are padding in every row.

    Args:
        batch: a mapping with `attention_mask` of shape (rows, positions); tensors whose second dimension is as long
            are cut with it.

    Raises:
        Refused: there is no such mask.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or mask.dim() != 2:
        raise Refused("the batch has no attention_mask that tells its padding")
    positions = mask.shape[1]
    kept = mask.bool().any(dim=0).nonzero()
    used = int(kept[-1]) + 1 if len(kept) else positions
    return {
        name: value[:, :used] if getattr(value, "dim", int)() >= 2 and value.shape[1] == positions else value
        for name, value in batch.items()
    }


def with_length_grouping(loader: Any, replicas: int = 1, rank: int = 0) -> Any:
    """The loader with batches of samples of similar length, in windows that stay shuffled.

    Of a large dataset, or a slow one, only as many samples are used as a trial needs, drawn from all of it.

    Raises:
        Refused: the samples' lengths cannot be read, or transformers, whose sampler this is, is not installed.
    """
    try:
        from transformers.trainer_pt_utils import DistributedLengthGroupedSampler, LengthGroupedSampler
    except ImportError as error:
        raise Refused("grouping uses the sampler of transformers, which is not installed") from error
    chosen, lengths = _lengths(loader.dataset, READ_S if replicas == 1 else math.inf)  # the same on every rank
    places = (
        LengthGroupedSampler(loader.batch_size, lengths=lengths)
        if replicas == 1
        else DistributedLengthGroupedSampler(loader.batch_size, replicas, rank, lengths=lengths)
    )
    grouped = rebuild(loader, sampler=_Chosen(places, chosen), batch_size=loader.batch_size)
    try:
        return with_trimmed_padding(grouped) if _has_mask(loader) else grouped
    except Refused:
        return grouped


def check_trimmable(loader: Any) -> None:
    """Refuses where the first samples do not make a batch that could be trimmed."""
    trim_padding(loader.collate_fn(_first_samples(loader)))


def _has_mask(loader: Any) -> bool:
    try:
        check_trimmable(loader)
    except Refused:
        return False
    return True


def _first_samples(loader: Any) -> list[Any]:
    if not hasattr(loader.dataset, "__getitem__") or loader.batch_sampler is None:
        raise Refused("the dataset cannot be indexed")
    return [loader.dataset[index] for index in range(min(2, len(loader.dataset)))]


def _lengths(dataset: Any, limit_s: float) -> tuple[list[int], list[int]]:
    """Indices of samples, drawn at random, and their lengths: as many as can be read within the limit."""
    import torch

    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise Refused("the dataset cannot be indexed, so lengths are not known ahead")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:READ_SAMPLES].tolist()
    lengths: list[int] = []
    ends = monotonic() + limit_s
    for index in order:
        if len(lengths) >= READ_AHEAD and monotonic() > ends:
            break
        lengths.append(length_of(dataset[index]))
    return order[: len(lengths)], lengths


class _Chosen:
    """A sampler's places in a list of samples, as these samples' indices in the dataset."""

    def __init__(self, places: Any, indices: list[int]) -> None:
        self._places, self._indices = places, indices

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return (self._indices[place] for place in self._places)

    def set_epoch(self, epoch: int) -> None:
        """Lightning tells samplers of several ranks."""
        if hasattr(self._places, "set_epoch"):
            self._places.set_epoch(epoch)


def length_of(sample: Any) -> int:
    """Tokens of one sample.

    Raises:
        Refused: neither its attention mask nor its ids tell.
    """
    if isinstance(sample, Mapping):
        mask, ids = sample.get("attention_mask"), sample.get("input_ids")
        if mask is not None:
            return int(sum(mask) if isinstance(mask, list) else mask.sum())
        if ids is not None:
            return len(ids)
    raise Refused("the samples have neither attention_mask nor input_ids, so lengths are not known")
