"""`attach` measures a training loop that never calls effprof: by hooks on its model and its optimizers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from time import perf_counter_ns as now
from typing import Any, Generic, TypeVar

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from effprof.measure.clock import BACKWARD, EVALUATION, FORWARD, INPUT_WAIT, OPTIMIZER, OTHER, PHASE_BITS
from effprof.measure.facts.gather import loop_facts
from effprof.measure.facts.parallel import parallel_facts
from effprof.measure.placement import Placement
from effprof.measure.profiler import StepProfiler

Batch = TypeVar("Batch")


class ForwardHooks:
    """Marks a model's forward passes in training, and shows their batches to a profiler.

    Args:
        model: the module whose call is one micro-batch.
        profiler: the open profiler.
        on_error: told what failed inside a hook.
        module: what is trained, where `model` only wraps it.
        context: makes the context manager (autocast) that a micro-batch runs under.
        prepare: shown the keywords of the first micro-batch before it is counted.
        before, evaluating: called at the beginning of each forward pass in training, and outside of it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        profiler: StepProfiler,
        on_error: Callable[[Exception], None],
        *,
        module: torch.nn.Module | None = None,
        context: Callable[[], Any] | None = None,
        prepare: Callable[[Mapping[str, Any]], None] = lambda _: None,
        before: Callable[[], None] = lambda: None,
        evaluating: Callable[[], None] = lambda: None,
    ) -> None:
        self._profiler: StepProfiler | None = profiler
        self._on_error = on_error
        self._module = module or model
        self._context = context
        self._prepare: Callable[[Mapping[str, Any]], None] | None = prepare
        self._before = before
        self._evaluating = evaluating
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end),
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._profiler = None
        while self._handles:
            self._handles.pop().remove()

    def _begin(self, module: torch.nn.Module, arguments: Any, keywords: Mapping[str, Any]) -> None:
        profiler = self._profiler
        if profiler is None or profiler.clock is None:
            return
        try:
            if not module.training:
                self._evaluating()
                return
            self._before()
            batch = dict(keywords) if keywords and not arguments else arguments
            if self._prepare is not None:
                prepare, self._prepare = self._prepare, None
                prepare(keywords)
                profiler.count_batch(batch, module=self._module, step=loss_of, context=self._context)
            else:
                profiler.count_batch(batch)
        except Exception as error:
            self._on_error(error)
            return
        profiler.clock.mark(now() << PHASE_BITS | FORWARD)

    def _end(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        profiler = self._profiler
        if profiler is None or profiler.clock is None or not module.training:
            return
        profiler.clock.mark(now() << PHASE_BITS | BACKWARD)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            profiler.record_loss(loss)


def loss_of(model: Any, batch: Any) -> Any:
    """One micro-batch as its hooks saw it: the output's loss, else the sum of what it gives out, with equal FLOPs."""
    output = model(**batch) if isinstance(batch, Mapping) else model(*batch)
    if isinstance(output, Mapping):
        output = output["loss"] if output.get("loss") is not None else next(iter(output.values()))
    if isinstance(output, (tuple, list)):
        output = output[0]
    return output if output.numel() == 1 else output.float().sum()


class HookedLoop:
    """A loop under measurement; `close` it, or leave that to the end of the process.

    A micro-batch is a call of the model in training, an optimizer step ends a step. What lies between the end of the
    forward pass and the optimizer is backward. Calls of the model in evaluation count as evaluation until training goes
    on. The wait for batches is only seen where the loader is iterated through `watch`.

    Args:
        model: the module that the loop calls.
        optimizers: those that train it; none: every optimizer of torch's that holds one of its parameters.
        module: what is trained, where `model` only wraps it; its FLOPs are counted.
        device: where it trains; the model's by default.
        framework, framework_version: who runs the loop, for the record.
        placement: this process among the job's; from the launcher's environment by default.
        config: settings by their names in `effprof.runlog.settings`.
        context: makes the context manager (autocast) that a micro-batch runs under.
        settings: further arguments of `effprof.measure.profiler.StepProfiler`, `run_dir` among them.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: Sequence[Any] = (),
        *,
        module: torch.nn.Module | None = None,
        device: torch.device | None = None,
        framework: str = "pytorch",
        framework_version: str = "",
        placement: Placement | None = None,
        config: Mapping[str, Any] | None = None,
        context: Callable[[], Any] | None = None,
        root: str | os.PathLike[str] = ".",
        **settings: Any,
    ) -> None:
        self._optimizers = [unwrapped(optimizer) for optimizer in optimizers]
        self._profiler: StepProfiler | None = StepProfiler(module or model, optimizer=self._optimizers, **settings)
        self._profiler.open(
            root=root,
            placement=placement,
            device=device,
            framework=framework,
            framework_version=framework_version,
        )
        self._run_dir = self._profiler.run_dir
        self._config = dict(config or {})
        self._module = module or model
        self._loader: Any = None
        self._own: set[int] = set()
        self._has_begun = self._is_stepped = False
        self._micro_batches = self._steps = 0
        self._undo = [
            ForwardHooks(
                model,
                self._profiler,
                self._disable,
                module=self._module,
                context=context,
                prepare=self._read_facts,
                before=self._begin_micro_batch,
                evaluating=self._begin_evaluation,
            ).remove
        ]
        self._watch_optimizers()

    @property
    def run_dir(self) -> str | None:
        """The run's directory."""
        return self._run_dir

    def watch(self, loader: Iterable[Batch]) -> WatchedLoader[Batch]:
        """The loader, with the time in it counted as input wait; it can be iterated again and again."""
        self._loader = loader
        return WatchedLoader(loader, self)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A span of its own inside the loop: `checkpoint`, `evaluation`, `generation`, `host_to_device`, …

        Raises:
            EffprofError: `name` is not a phase, or the run is closed.
        """
        assert self._profiler is not None
        return self._profiler.phase(name)

    def end_step(self) -> None:
        """An optimizer step is done: for optimizers without torch's hooks."""
        profiler = self._profiler
        if profiler is None:
            return
        try:
            self._end_step(profiler)
        except Exception as error:
            self._disable(error)

    def switch(self, phase: int) -> None:
        """Go over to a phase of `effprof.measure.clock`."""
        if self._profiler is not None and self._profiler.clock is not None:
            self._profiler.clock.switch(phase)

    def close(self, status: str = "completed", reason: str = "") -> None:
        """Finish the log and say where it is."""
        profiler, self._profiler = self._profiler, None
        while self._undo:
            self._undo.pop()()
        if profiler is None:
            return
        try:
            if self._is_stepped and status == "completed":
                self._end_step(profiler)
            is_announced = profiler.session.record.framework != "pytorch" and profiler.session.placement.rank == 0
            profiler.close(status, reason)
        except Exception as error:
            warnings.warn(f"effprof: closing the log failed ({type(error).__name__}: {error})", stacklevel=2)
            return
        if is_announced:
            print(f"effprof: {self._run_dir}\n         effprof analyze {self._run_dir}")

    def __enter__(self) -> HookedLoop:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            self.close()
        else:
            self.close("failed", f"{kind.__name__}: {error}")

    # What the hooks tell.

    def begin_fetch(self) -> None:
        """The loop asks for a batch."""
        profiler = self._profiler
        if profiler is None:
            return
        self._begin()
        if self._is_stepped:
            self.end_step()
        self.switch(INPUT_WAIT)

    def end_fetch(self) -> None:
        """The batch is there."""
        self.switch(OTHER)

    def _begin(self) -> None:
        if not self._has_begun and self._profiler is not None and self._profiler.clock is not None:
            self._has_begun = True
            # not before: sharding the model after `attach` gives it other parameters
            self._own = {id(parameter) for parameter in self._module.parameters()}
            self._profiler.clock.begin_steps()
            self._profiler.clock.switch(OTHER)

    def _begin_micro_batch(self) -> None:
        self._begin()
        if self._is_stepped and self._profiler is not None:
            self._end_step(self._profiler)
        self._micro_batches += 1
        if self._micro_batches > 1 and self._profiler is not None:
            self._profiler.end_micro_batch()

    def _begin_evaluation(self) -> None:
        profiler = self._profiler
        if profiler is None or profiler.clock is None or not self._has_begun:
            return
        if self._is_stepped:
            self._end_step(profiler)
        if profiler.clock.phase in (OTHER, INPUT_WAIT):
            profiler.clock.switch(EVALUATION)

    def _before_optimizer(self, optimizer: Any, *_: Any) -> None:
        if self._micro_batches and self._is_own(optimizer):
            self.switch(OPTIMIZER)

    def _after_optimizer(self, optimizer: Any, *_: Any) -> None:
        if not self._micro_batches or not self._is_own(optimizer):
            return
        self._is_stepped = True
        self.switch(OTHER)
        if len(self._optimizers) == 1:  # of several the last one's step ends the step, known when the next begins
            self.end_step()

    def _end_step(self, profiler: StepProfiler) -> None:
        self._is_stepped = False
        self._steps += 1
        if self._steps == 1:
            profiler.session.record.config["accumulate"] = self._micro_batches
        self._micro_batches = 0
        profiler.end_micro_batch()
        profiler.end_step(self._steps)

    # Inside.

    def _is_own(self, optimizer: Any) -> bool:
        if any(optimizer is each for each in self._optimizers):
            return True
        if self._optimizers:
            return False
        groups = getattr(optimizer, "param_groups", [])
        return any(id(parameter) in self._own for group in groups for parameter in group["params"])

    def _watch_optimizers(self) -> None:
        hooked = [each for each in self._optimizers if isinstance(each, Optimizer)]
        for optimizer in hooked:
            self._undo.append(optimizer.register_step_pre_hook(self._before_optimizer).remove)
            self._undo.append(optimizer.register_step_post_hook(self._after_optimizer).remove)
        if not self._optimizers:
            self._undo.append(register_optimizer_step_pre_hook(self._before_optimizer).remove)
            self._undo.append(register_optimizer_step_post_hook(self._after_optimizer).remove)

    def _read_facts(self, _: Mapping[str, Any]) -> None:
        profiler = self._profiler
        if profiler is None:
            return
        session = profiler.session
        device = session.device
        with session.guarded("settings"):
            facts = loop_facts(self._module, self._optimizers, self._loader, device.type, device.index or 0)
            session.record.config.update(facts | self._config)
            session.record.parallel.update(parallel_facts(self._module))

    def _disable(self, error: Exception) -> None:
        warnings.warn(
            f"effprof: measuring failed and is off, training goes on ({type(error).__name__}: {error})", stacklevel=3
        )
        self.close("failed", f"effprof: {type(error).__name__}: {error}")


class WatchedLoader(Generic[Batch]):
    """A loader whose batches are waited for under measurement; everything else is the loader's own."""

    def __init__(self, loader: Iterable[Batch], loop: HookedLoop) -> None:
        self._loader = loader
        self._loop = loop

    def __iter__(self) -> Iterator[Batch]:
        self._loop.begin_fetch()
        batches = iter(self._loader)
        while True:
            self._loop.begin_fetch()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._loop.end_fetch()
            yield batch

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # raises where the loader has no length, as it does itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def unwrapped(optimizer: Any) -> Any:
    """The optimizer of torch's inside a framework's wrapper; the wrapper where there is none."""
    inner = optimizer
    # a wrapper may be an optimizer by its class and still have none of its parts
    while (deeper := getattr(inner, "optimizer", None)) is not None:
        inner = deeper
    return inner if isinstance(inner, Optimizer) else optimizer


def attach(model: torch.nn.Module, *optimizers: Any, **settings: Any) -> HookedLoop:
    """Measure a loop through hooks, with nothing changed inside it.

    ::

        run = attach(model, optimizer)
        for batch in run.watch(loader):  # or `in loader`: the wait for batches is then not told apart
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        run.close()

    Args:
        model: the module that the loop calls, once per micro-batch.
        optimizers: those that train it; without one every optimizer of torch's that holds one of its parameters.
        settings: arguments of `HookedLoop` and of `effprof.measure.profiler.StepProfiler`, `run_dir` among them.

    Returns:
        The loop under measurement: `run_dir`, `watch`, `phase`, `close`, a context manager.

    Raises:
        EffprofError: the run directory cannot be agreed on or written.
    """
    return HookedLoop(model, optimizers, **settings)
