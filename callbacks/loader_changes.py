"""A DataLoader made again with other settings: what a trial changes about how batches are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

WINDOW_SAMPLES = 50_000  # lengths are read from the samples themselves: past this the reading would take minutes


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

    Raises:
        Refused: the samples' lengths cannot be read, or transformers, whose sampler this is, is not installed.
    """
    try:
        from transformers.trainer_pt_utils import DistributedLengthGroupedSampler, LengthGroupedSampler
    except ImportError as error:
        raise Refused("grouping uses the sampler of transformers, which is not installed") from error
    lengths = _lengths(loader.dataset)
    sampler = (
        LengthGroupedSampler(loader.batch_size, lengths=lengths)
        if replicas == 1
        else DistributedLengthGroupedSampler(loader.batch_size, replicas, rank, lengths=lengths)
    )
    grouped = rebuild(loader, sampler=sampler, batch_size=loader.batch_size)
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


def _lengths(dataset: Any) -> list[int]:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise Refused("the dataset cannot be indexed, so lengths are not known ahead")
    if len(dataset) > WINDOW_SAMPLES:
        raise Refused(f"reading the lengths of {len(dataset):,} samples would take too long")
    measure: Callable[[Any], int] = _length_of
    return [measure(dataset[index]) for index in range(len(dataset))]


def _length_of(sample: Any) -> int:
    if isinstance(sample, Mapping):
        mask, ids = sample.get("attention_mask"), sample.get("input_ids")
        if mask is not None:
            return int(sum(mask) if isinstance(mask, list) else mask.sum())
        if ids is not None:
            return len(ids)
    raise Refused("the samples have neither attention_mask nor input_ids, so lengths are not known")
