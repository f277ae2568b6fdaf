"""`attach` measures a loop around a DeepSpeed engine, whose optimizers are no optimizers of torch's."""

from __future__ import annotations

from typing import Any

import deepspeed

from effprof.callbacks.hooks import HookedLoop
from effprof.measure.clock import OPTIMIZER, OTHER


def attach(engine: Any, **settings: Any) -> HookedLoop:
    """Measure a loop of `engine(…)`, `engine.backward(…)` and `engine.step()`.

    ::

        engine, _, loader, _ = deepspeed.initialize(model=model, config=config, training_data=data)
        run = attach(engine)
        for batch in run.watch(loader):
            engine.backward(engine(**batch).loss)
            engine.step()
        run.close()

    `engine.step` ends a step at the boundary of gradient accumulation only. A pipeline engine (`train_batch`) has no
    such calls: use `StepProfiler.step` around each `train_batch`.

    Args:
        engine: what `deepspeed.initialize` returns first.
        settings: arguments of `effprof.callbacks.hooks.HookedLoop` and of `StepProfiler`, `run_dir` among them.

    Returns:
        The loop under measurement: `run_dir`, `watch`, `phase`, `close`, a context manager.

    Raises:
        EffprofError: the run directory cannot be agreed on or written.
    """
    return EngineLoop(engine, **settings)


class EngineLoop(HookedLoop):
    """A loop whose steps an engine ends."""

    def __init__(self, engine: Any, **settings: Any) -> None:
        self._engine = engine
        super().__init__(
            engine,
            module=engine.module,
            device=engine.device,
            framework="deepspeed",
            framework_version=deepspeed.__version__,
            config={
                "strategy": f"zero-{engine.zero_optimization_stage()}",
                "precision": _precision(engine),
                "micro_batch": engine.train_micro_batch_size_per_gpu(),
            },
            **settings,
        )
        self._step = engine.step
        engine.step = self._step_of_engine
        self._undo.append(self._restore)

    def _watch_optimizers(self) -> None:
        """The engine tells when a step ends; what it calls inside is part of it."""

    def _step_of_engine(self, *arguments: Any, **keywords: Any) -> Any:
        is_boundary = self._engine.is_gradient_accumulation_boundary()
        if is_boundary:
            self.switch(OPTIMIZER)
        result = self._step(*arguments, **keywords)
        self.switch(OTHER)
        if is_boundary:
            self.end_step()
        return result

    def _restore(self) -> None:
        self._engine.step = self._step


def _precision(engine: Any) -> str:
    if engine.bfloat16_enabled():
        return "bf16-true"
    return "16-true" if engine.fp16_enabled() else "32-true"
