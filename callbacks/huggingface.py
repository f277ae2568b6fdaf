"""`EfficiencyCallback` for the Trainer of transformers and of the libraries that build on it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from effprof.callbacks.hooks import ForwardHooks
from effprof.measure.clock import (
    CHECKPOINT,
    EVALUATION,
    INPUT_WAIT,
    LOGGING,
    OPTIMIZER,
    OTHER,
    PhaseClock,
)
from effprof.measure.facts.gather import loop_facts
from effprof.measure.profiler import StepProfiler
from effprof.runlog.layout import prepare_own_id


class EfficiencyCallback(TrainerCallback):  # type: ignore[misc]  # untyped where transformers is not installed
    """Measures MFU, throughput, memory and where the time goes, of every `Trainer.train`.

    ::

        Trainer(model=model, args=args, train_dataset=data, callbacks=[EfficiencyCallback()])

    The Trainer shows its callbacks no batch, so batches and the border between forward and backward pass are seen by
    hooks on the model; from the end of the forward pass to the optimizer is backward. The Trainer fetches all
    micro-batches of a step before the first one runs: that is its input wait, copies to the device included.

    Args:
        run_dir: where to write; `effprof_runs/<id>` below `args.output_dir` by default.
        settings: further arguments of `effprof.measure.profiler.StepProfiler`.
    """

    def __init__(self, run_dir: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        super().__init__()
        self._settings = {"run_dir": run_dir, **settings}
        self._own_id = prepare_own_id()
        self._profiler: StepProfiler | None = None
        self._clock: PhaseClock | None = None
        self._undo: list[Callable[[], None]] = []
        self._run_dir: str | None = None

    @property
    def run_dir(self) -> str | None:
        """The run directory of the training that runs, or of the last one."""
        return self._run_dir

    # Around the training.

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **objects: Any) -> None:
        try:
            self._open(args, state, model, objects)
        except Exception as error:
            self._disable(error)

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self._close("completed")

    # Inside a step. `mark` only appends to a queue and can't fail.

    def on_step_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self._switch(OTHER)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self._switch(OPTIMIZER)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self._switch(OTHER)

    def on_substep_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if self._profiler is not None:
            self._profiler.end_micro_batch()
            self._switch(OTHER)

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        profiler = self._profiler
        if profiler is None:
            return
        try:
            profiler.end_micro_batch()
            profiler.end_step(state.global_step)
        except Exception as error:
            self._disable(error)
            return
        # the Trainer's own callback, which comes first, has decided by now what follows the step, in this order
        self._after_step = [
            phase
            for phase, follows in (
                (LOGGING, control.should_log),
                (EVALUATION, control.should_evaluate),
                (CHECKPOINT, control.should_save),
            )
            if follows
        ]
        self._next_duty()

    # After a step.

    def on_log(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self._done_with(LOGGING)

    def on_evaluate(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self._done_with(EVALUATION)

    def on_save(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self._done_with(CHECKPOINT)

    # Inside.

    _after_step: list[int]

    def _open(self, args: Any, state: Any, model: Any, objects: Mapping[str, Any]) -> None:
        self._close("failed", "another training began")
        profiler = StepProfiler(model, own_id=self._own_id, **self._settings)
        profiler.open(
            root=args.output_dir or ".",
            device=args.device,
            framework="transformers",
            framework_version=transformers.__version__,
        )
        profiler.goes_on_from(state.global_step)
        self._profiler, self._clock, self._run_dir = profiler, profiler.clock, profiler.run_dir
        self._after_step = []
        optimizer = objects.get("optimizer")
        profiler.optimizers = [optimizer]
        record = profiler.session.record
        record.config.update(loop_facts(model, [optimizer], objects.get("train_dataloader"), args.device.type))
        record.config.update(_configuration(args, state))
        hooks = ForwardHooks(model, profiler, self._disable, context=_autocast(args), prepare=self._prepare)
        self._undo.append(hooks.remove)
        assert profiler.clock is not None
        profiler.clock.begin_steps()
        profiler.clock.switch(INPUT_WAIT)

    def _prepare(self, keywords: Mapping[str, Any]) -> None:
        watches = self._profiler.watches if self._profiler is not None else None
        if watches is not None and watches.losses is not None:
            # with it the model divides by the tokens of the whole step, not of the micro-batch
            watches.losses.takes_mean = keywords.get("num_items_in_batch") is None

    def _switch(self, phase: int) -> None:
        if self._clock is not None:
            self._clock.switch(phase)

    def _next_duty(self) -> None:
        self._switch(self._after_step[0] if self._after_step else INPUT_WAIT)

    def _done_with(self, phase: int) -> None:
        # a log line also follows an evaluation's figures, a training's end and a callback's own wish
        if self._clock is not None and self._after_step and self._after_step[0] == phase:
            self._after_step.pop(0)
            self._next_duty()

    def _close(self, status: str, reason: str = "") -> None:
        profiler, self._profiler, self._clock = self._profiler, None, None
        while self._undo:
            self._undo.pop()()
        if profiler is None:
            return
        is_first_rank = profiler.session.placement.rank == 0
        try:
            profiler.close(status, reason)
        except Exception as error:
            warnings.warn(f"effprof: closing the log failed ({type(error).__name__}: {error})", stacklevel=2)
        if is_first_rank:
            print(f"effprof: {self._run_dir}\n         effprof analyze {self._run_dir}")

    def _disable(self, error: Exception) -> None:
        warnings.warn(
            f"effprof: measuring failed and is off, training goes on ({type(error).__name__}: {error})", stacklevel=3
        )
        self._close("failed", f"effprof: {type(error).__name__}: {error}")


def _autocast(args: Any) -> Callable[[], Any] | None:
    """What makes the context that the Trainer runs the model under; None without mixed precision."""
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return None if dtype is None else lambda: torch.autocast(args.device.type, dtype)


def _configuration(args: Any, state: Any) -> dict[str, Any]:
    """The Trainer's settings, by their names in `effprof.runlog.settings`."""
    precision = "bf16-mixed" if args.bf16 else "16-mixed" if args.fp16 else "32-true"
    return {
        "precision": precision,
        "accumulate": args.gradient_accumulation_steps,
        "micro_batch": args.per_device_train_batch_size,
        "gradient_checkpointing": bool(args.gradient_checkpointing),
        "gradient_clip_val": args.max_grad_norm,
        "log_every_n_steps": int(state.logging_steps or args.logging_steps),
        "max_steps": state.max_steps,
    }
