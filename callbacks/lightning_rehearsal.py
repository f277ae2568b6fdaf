"""Rehearsals: a trial's own micro-batches forward and backward, with and without a change in turn, in one process.

Seconds instead of the minutes that an A/B test of processes takes, for the changes that can be made and undone inside
a training. It times the model alone, and its loader where that is what changes: what a change does to the rest of the
step, to the loss or to the next process is for the test to say. A trial throws its model away, so gradients, random
state and buffers may be used up here.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from effprof.advise.changes import CHANGES
from effprof.advise.rehearsal import Rehearsed
from effprof.callbacks import lightning_changes
from effprof.callbacks.loader_changes import Refused, length_of, rebuild, trim_padding

KEPT = 48  # micro-batches at hand, the last ones: enough for windows of similar length
KEPT_BYTES = 512 << 20
PASS_S = 0.1  # of a pass, or one micro-batch: neighbours on a processor come and go within some tenths of a second
ROUNDS, MIN_ROUNDS = 100, 5
KEEPS_UP = 0.8  # of a step: workers that load a batch within it are ahead all the time

Batches = list[Any]


class Rehearsal:
    """Keeps micro-batches while a trial trains, and times them with changes when it is over.

    Args:
        wanted: the sets of changes to rehearse, in the vocabulary of `effprof.advise.changes`.
        seconds: for each of them, warm-up included; slow micro-batches may take longer.
    """

    def __init__(self, wanted: Sequence[Mapping[str, Any]], seconds: float) -> None:
        self._seconds = seconds
        self._wanted = [dict(changes) for changes in wanted]
        self._batches: deque[Any] = deque(maxlen=KEPT)

    def end_batch(self, batch: Any) -> None:
        """Keep a micro-batch, as long as all that are kept are not too large."""
        if len(self._batches) < 2 or len(self._batches) * _bytes_of(batch) < KEPT_BYTES:
            self._batches.append(batch)

    def run(self, trainer: Any, module: Any) -> list[Rehearsed]:
        """Every wanted set of changes; one that can't be rehearsed says why."""
        return [self._rehearse(trainer, module, changes) for changes in self._wanted]

    def _rehearse(self, trainer: Any, module: Any, changes: Mapping[str, Any]) -> Rehearsed:
        try:
            if trainer.world_size > 1:
                raise Refused("the training has more than one process")
            step = _MicroBatch(trainer, module)
            own, changed = _both_sides(list(self._batches), changes)
            with _sources(trainer, module, changes) as sources:
                is_loaded = sources[0] is not None
                timing = _Timing(trainer, module, step, changes, sources)
                rounds, seconds = timing.rounds(own, changed, self._seconds)
        except Refused as error:
            return Rehearsed(changes=dict(changes), reason=str(error))
        except Exception as error:  # out of memory with the change, most likely: a result, not the end of the trial
            return Rehearsed(changes=dict(changes), reason=f"{type(error).__name__}: {str(error)[:200]}")
        own_s = float(np.median([before for before, _ in rounds]))
        ratios, merged = [after / before for before, after in rounds], len(own) if "micro_batch" in changes else 1
        return Rehearsed.of(changes, ratios, own_s=own_s, seconds=seconds, merged=merged, is_loaded=is_loaded)


class _MicroBatch:
    """The training's step on one micro-batch, as the Trainer calls it."""

    def __init__(self, trainer: Any, module: Any) -> None:
        if not module.automatic_optimization:
            raise Refused("the module steps its optimizers itself")
        self._trainer, self._module = trainer, module
        names = list(inspect.signature(module.training_step).parameters)
        if len(names) > 2:
            raise Refused(f"training_step takes {', '.join(names)}")
        self._takes_index = len(names) == 2

    def __call__(self, batch: Any, index: int) -> None:
        output = self._trainer.strategy.training_step(*((batch, index) if self._takes_index else (batch,)))
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:
            raise Refused("training_step gave no loss")
        loss.backward()

    @contextlib.contextmanager
    def as_in_training(self) -> Iterator[None]:
        """`self.log` takes its time here too, and writes to where the step's own figures are."""
        before = self._module._current_fx_name
        self._module._current_fx_name = "training_step"
        try:
            yield
        finally:
            self._module._current_fx_name = before


class _Timing:
    """Passes over micro-batches, with and without the changes."""

    def __init__(
        self, trainer: Any, module: Any, step: _MicroBatch, changes: Mapping[str, Any], sources: Sources
    ) -> None:
        self._trainer, self._module, self._step = trainer, module, step
        self._changes = {name: value for name, value in changes.items() if name in SETTINGS}
        self._accumulate = int(trainer.accumulate_grad_batches)
        self._accumulate_changed = int(changes.get("accumulate", self._accumulate))
        self._synchronize = _synchronizer(trainer.strategy.root_device)
        self._workers = int(changes.get("num_workers", 0))
        self._sources = sources
        # the first micro-batch of a pass finds caches and memory as the other side left them, and isn't timed; where
        # loaders alone differ, both sides leave them alike
        self._untimed = 0 if set(changes) <= set(LOADER) else 1

    def rounds(self, own: Batches, changed: Batches, seconds: float) -> tuple[list[tuple[float, float]], float]:
        """Seconds of one of the training's micro-batches as it is, and of the same samples with the changes, per round;
        and the seconds it all took."""
        began = perf_counter()
        with self._step.as_in_training():
            times = self._round(own, changed)  # warms up, and tells how often the samples fill a pass
            self._refuse_workers_that_lag(times[0] / len(own))
            repeats = max(1, round(PASS_S / max(1e-6, *times)))
            found: list[tuple[float, float]] = []
            while len(found) < ROUNDS:
                if len(found) >= MIN_ROUNDS and perf_counter() - began > seconds:
                    break
                times = self._round(own * repeats, changed * repeats, is_swapped=len(found) % 2 == 1)
                found.append((times[0] / (repeats * len(own)), times[1] / (repeats * len(own))))
        return found, perf_counter() - began

    def _refuse_workers_that_lag(self, own_s: float) -> None:
        source = self._sources[0]
        if source is None or not self._workers:
            return
        if source.mean_s / self._workers > KEEPS_UP * (own_s - source.mean_s):
            # a pass begins with the batches that were made in the meantime, a step of the training would not
            raise Refused(f"{self._workers} workers would lag behind the model")

    def _round(self, own: Batches, changed: Batches, is_swapped: bool = False) -> tuple[float, float]:
        if is_swapped:
            after = self._changed_pass(changed)
            return self._own_pass(own), after
        return self._own_pass(own), self._changed_pass(changed)

    def _own_pass(self, batches: Batches) -> float:
        return self._pass(batches, self._accumulate, self._sources[0])

    def _changed_pass(self, batches: Batches) -> float:
        with contextlib.ExitStack() as stack:
            for name, value in self._changes.items():
                stack.enter_context(SETTINGS[name](self._trainer, self._module, value))
            return self._pass(batches, self._accumulate_changed, self._sources[1])

    def _pass(self, batches: Batches, accumulate: int, source: _Source | None) -> float:
        began = 0.0
        for index, batch in enumerate([*batches[: self._untimed], *batches], start=-self._untimed):
            if index == 0:
                self._synchronize()
                began = perf_counter()
            loaded = batch if source is None else source()
            if index < 0 or index % accumulate == 0:
                self._module.zero_grad(set_to_none=True)
            self._step(loaded, max(0, index))
        self._synchronize()
        return perf_counter() - began


class _Source:
    """Batches of a loader, as the Trainer hands them to the module.

    Attributes:
        mean_s: seconds that one took so far.
    """

    def __init__(self, trainer: Any, module: Any, loader: Any) -> None:
        self._strategy, self._module, self._loader = trainer.strategy, module, loader
        self._iterator = iter(loader)
        self._taken, self._seconds = 0, 0.0

    def __call__(self) -> Any:
        began = perf_counter()
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._iterator = iter(self._loader)
            batch = next(self._iterator)
        self._taken += 1
        self._seconds += perf_counter() - began
        batch = self._module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self._strategy.batch_to_device(batch, dataloader_idx=0)

    @property
    def mean_s(self) -> float:
        return self._seconds / self._taken

    def close(self) -> None:
        """End its workers, where it has any."""
        getattr(self._iterator, "_shutdown_workers", lambda: None)()


Sources = tuple[_Source | None, _Source | None]


@contextlib.contextmanager
def _sources(trainer: Any, module: Any, changes: Mapping[str, Any]) -> Iterator[Sources]:
    """Where both sides' batches come from: loaders where these change, else None for the batches at hand."""
    loader = trainer.train_dataloader
    rebuilt = _rebuilt(loader, changes)
    if rebuilt is None:
        yield None, None
        return
    own, changed = _Source(trainer, module, loader), _Source(trainer, module, rebuilt)
    try:
        yield own, changed
    finally:
        changed.close()


def _rebuilt(loader: Any, changes: Mapping[str, Any]) -> Any:
    """The loader with its changes; None where none of them is the loader's, or it can't be read twice at once."""
    from torch.utils.data import DataLoader, IterableDataset

    if "num_workers" in changes:
        if loader.num_workers:
            raise Refused("workers load ahead already: a pass would begin with what they made in the meantime")
        return rebuild(loader, **{name: changes[name] for name in LOADER if name in changes})
    is_plain = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    if "micro_batch" in changes and is_plain and not loader.num_workers:
        return rebuild(loader, batch_size=int(changes["micro_batch"]))
    return None


def _both_sides(batches: Batches, changes: Mapping[str, Any]) -> tuple[Batches, Batches]:
    """The same samples as the training has them, and as it would with the changes."""
    unknown = [name for name in changes if name not in SETTINGS and name not in BATCHES]
    if unknown:
        raise Refused(f"{', '.join(unknown)}: what it changes is not forward and backward alone")
    if not batches:
        raise Refused("the trial saw no micro-batch")
    if "micro_batch" in changes:
        return _merged(batches, int(changes["micro_batch"]))
    if changes.get("length_grouping"):
        return _grouped(batches)
    if changes.get("trim_padding"):
        return batches[-2:], [trim_padding(batch) for batch in batches[-2:]]
    return batches[-1:], batches[-1:]


def _merged(batches: Batches, size: int) -> tuple[Batches, Batches]:
    rows = _rows(batches[-1])
    own = [batch for batch in batches if _rows(batch) == rows]
    factor, rest = divmod(size, rows)
    if rest or not 1 < factor <= len(own):
        raise Refused(f"{len(own)} micro-batches of {rows} samples make none of {size}")
    used = own[-factor:]
    return used, [_concatenated(used)]


def _grouped(batches: Batches) -> tuple[Batches, Batches]:
    rows = _rows(batches[-1])
    own = [batch for batch in batches if _rows(batch) == rows]
    whole = _concatenated(own)
    lengths = [length_of({"attention_mask": row}) for row in _mask(whole)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = [order[start : start + rows] for start in range(0, len(order), rows)]
    # both sides evenly over all lengths: a quarter of the batches stands for all
    picked = range(len(groups) % 4 // 2, len(groups), 4) if len(groups) >= 16 else range(len(groups))
    return [own[place] for place in picked], [trim_padding(_picked(whole, groups[place])) for place in picked]


def _mask(batch: Any) -> Any:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or mask.dim() != 2:
        raise Refused("the batch has no attention_mask that tells its samples' lengths")
    return mask


def _concatenated(batches: Batches) -> Any:
    import torch

    first = batches[0]
    if isinstance(first, torch.Tensor):
        if first.dim() == 0 or any(each.shape[1:] != first.shape[1:] for each in batches):
            raise Refused("micro-batches differ in shape")
        return torch.cat(batches)
    if isinstance(first, Mapping):
        return {name: _concatenated([each[name] for each in batches]) for name in first}
    if type(first) in (list, tuple):
        return type(first)(_concatenated([each[place] for each in batches]) for place in range(len(first)))
    raise Refused(f"batches hold a {type(first).__name__}")


def _picked(batch: Any, rows: list[int]) -> Any:
    if isinstance(batch, Mapping):
        return {name: _picked(value, rows) for name, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(_picked(value, rows) for value in batch)
    return batch[rows]


def _rows(batch: Any) -> int:
    return next((int(each.shape[0]) for each in _tensors(batch) if each.dim()), 0)


def _bytes_of(batch: Any) -> int:
    return sum(each.numel() * each.element_size() for each in _tensors(batch))


def _tensors(batch: Any) -> Iterator[Any]:
    if hasattr(batch, "element_size"):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)


def _synchronizer(device: Any) -> Callable[[], None]:
    import torch

    if device.type == "cpu":
        return lambda: None
    return lambda: torch.get_device_module(device).synchronize(device)


# Each setting is made for one pass and undone behind it.


@contextlib.contextmanager
def _precision(trainer: Any, module: Any, value: str) -> Iterator[None]:
    if not value.endswith("-mixed"):
        raise Refused(f"{value} converts the weights")
    connector, strategy = trainer._accelerator_connector, trainer.strategy
    before = (connector._precision_flag, connector._precision_plugin_flag, connector.precision_plugin)
    own = strategy.precision_plugin
    lightning_changes.EARLY["precision"](trainer, module, value)
    try:
        yield
    finally:
        connector._precision_flag, connector._precision_plugin_flag, connector.precision_plugin = before
        strategy.precision_plugin = own


@contextlib.contextmanager
def _gradient_checkpointing(trainer: Any, module: Any, value: bool | str) -> Iterator[None]:
    found = [each for each in module.modules() if isinstance(getattr(each, "gradient_checkpointing", None), bool)]
    if value is not False or not found:
        raise Refused("recompute is not switched by a flag of transformers' models here")
    before = [each.gradient_checkpointing for each in found]
    for each in found:
        each.gradient_checkpointing = value
    try:
        yield
    finally:
        for each, old in zip(found, before, strict=True):
            each.gradient_checkpointing = old


def _of_models(name: str, attribute: str) -> Callable[[Any, Any, Any], Any]:
    @contextlib.contextmanager
    def setting(trainer: Any, module: Any, value: str) -> Iterator[None]:
        before = [(each, getattr(each.config, attribute, None)) for each in module.children() if hasattr(each, name)]
        if not before or any(old is None for _, old in before):
            raise Refused(f"the model has no {name}")
        for model, _ in before:
            getattr(model, name)(value)
        try:
            yield
        finally:
            for model, old in before:
                getattr(model, name)(old)

    return setting


def _of_torch(get: Callable[[Any], Any], put: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    @contextlib.contextmanager
    def setting(trainer: Any, module: Any, value: Any) -> Iterator[None]:
        import torch

        before = get(torch)
        put(torch, value)
        try:
            yield
        finally:
            put(torch, before)

    return setting


SETTINGS: dict[str, Callable[[Any, Any, Any], contextlib.AbstractContextManager[None]]] = {
    "precision": _precision,
    "gradient_checkpointing": _gradient_checkpointing,
    "experts_implementation": _of_models("set_experts_implementation", "_experts_implementation"),
    "attn_implementation": _of_models("set_attn_implementation", "_attn_implementation"),
    "matmul_precision": _of_torch(
        lambda torch: torch.get_float32_matmul_precision(),
        lambda torch, value: torch.set_float32_matmul_precision(value),
    ),
    "detect_anomaly": _of_torch(
        lambda torch: torch.is_anomaly_enabled(), lambda torch, value: torch.autograd.set_detect_anomaly(value)
    ),
    "deterministic": _of_torch(
        lambda torch: torch.are_deterministic_algorithms_enabled(),
        lambda torch, value: torch.use_deterministic_algorithms(value),
    ),
    "threads": _of_torch(lambda torch: torch.get_num_threads(), lambda torch, value: torch.set_num_threads(value)),
}
LOADER = ("num_workers", "persistent_workers")
BATCHES = ("micro_batch", "accumulate", "length_grouping", "trim_padding", *LOADER)
assert set(SETTINGS) | set(BATCHES) <= set(CHANGES)
