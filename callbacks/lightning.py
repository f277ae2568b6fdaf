"""`EfficiencyCallback` measures a Lightning training: one line in the Trainer, MFU in the progress bar and the log."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from time import perf_counter_ns as now
from typing import TYPE_CHECKING, Any

from effprof.callbacks.lightning_actions import ActionListener, watch_loggers
from effprof.callbacks.lightning_facts import configuration, framework_of, layout, placement_of, scale_of
from effprof.callbacks.lightning_trial import LightningTrial, requested_trial
from effprof.measure.clock import BACKWARD, EVALUATION, FORWARD, LOGGING, OPTIMIZER, OTHER, PHASE_BITS, PhaseClock
from effprof.measure.live import Live
from effprof.measure.profiler import StepProfiler
from effprof.runlog.layout import prepare_own_id

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:

    def _callback_base() -> type:
        """The Callback of whichever Lightning package is in use: Trainers of both take either."""
        first, second = "pytorch_lightning", "lightning.pytorch"
        if second in sys.modules and first not in sys.modules:
            first, second = second, first
        for name in (first, second):
            try:
                return __import__(name, fromlist=["Callback"]).Callback
            except ModuleNotFoundError as error:
                if error.name not in (name, name.partition(".")[0]):
                    raise
        raise ModuleNotFoundError(
            "EfficiencyCallback needs Lightning: pip install 'effprof[lightning]'", name="pytorch_lightning"
        )

    Callback = _callback_base()


class EfficiencyCallback(Callback):  # type: ignore[misc]  # untyped where Lightning is not installed
    """Measures MFU, throughput, memory and where the time goes, of every `Trainer.fit`.

    ::

        Trainer(callbacks=[EfficiencyCallback()])

    FLOPs, tokens and the device's peak are detected; what could not be is said in one line that names the argument
    supplying it. Figures go to the Trainer's loggers (`effprof/mfu`, …) at its `log_every_n_steps`, to the progress
    bar, and, step by step, to a run directory that `effprof analyze` reads. Never synchronises the device, calls a
    collective or waits for a file, and no error of its own reaches the training.

    Args:
        run_dir: where to write; `effprof_runs/<id>` below the Trainer's `default_root_dir` by default.
        peak_tflops: dense peak of one device in TFLOP/s for the precision in use, where the catalogue has none.
        flops_per_step: model FLOPs of one optimizer step of the whole job, instead of counting them.
        tokens_fn: batch → number of tokens, or → mapping of counters (see `effprof.measure.tokens`).
        model_config: a `transformers` config (object or mapping) describing the model, where it can't be found.
        log_metrics: also log through `LightningModule.log`, so that `monitor="effprof/mfu"` of other callbacks works.
        telemetry: whether each node runs a sampler process for power, clocks, utilisation and host load.
        experts_every_n_steps: how often an MoE's expert load is sampled; 0 turns it off.
        routers: names routers that effprof does not know (see `effprof.measure.experts`).
        kernel_window: True records a few steps with torch's own profiler once, N every N steps: the account is then
            split by kernels. Without it, `touch RUN/profile` or SIGUSR2 asks for a window.
        keep_trace: whether the raw traces of kernel windows are kept beside the log.
        track_memory: whether one optimizer step is followed tensor by tensor, for the truth beside the prediction; that
            step takes several times longer.
    """

    _is_first_batch: bool
    _trial: LightningTrial | None

    def __init__(
        self,
        run_dir: str | os.PathLike[str] | None = None,
        *,
        peak_tflops: float | None = None,
        flops_per_step: float | None = None,
        tokens_fn: Callable[[Any], Any] | None = None,
        model_config: Any = None,
        log_metrics: bool = False,
        telemetry: bool = True,
        experts_every_n_steps: int = 50,
        routers: Mapping[str, Any] | None = None,
        kernel_window: bool | int = False,
        keep_trace: bool = False,
        track_memory: bool = False,
    ) -> None:
        super().__init__()
        self._log_metrics = log_metrics
        self._settings: dict[str, Any] = {
            "run_dir": run_dir,
            "peak_tflops": peak_tflops,
            "flops_per_step": flops_per_step,
            "tokens_fn": tokens_fn,
            "model_config": model_config,
            "telemetry": telemetry,
            "experts_every_n_steps": experts_every_n_steps,
            "routers": routers,
            "track_memory": track_memory,
            "kernel_window": kernel_window,
            "keep_trace": keep_trace,
        }
        # before Lightning launches the other ranks of this machine, which find it in their environment
        self._own_id = prepare_own_id()
        self._reset()

    @property
    def run_dir(self) -> str | None:
        """The run directory of the fit that runs, or of the last one."""
        return self._run_dir

    @property
    def live(self) -> Live | None:
        """The figures shown last."""
        return self._live

    # Around the training.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        self._reset()
        self._is_zero = bool(trainer.is_global_zero)
        self._trial = requested_trial()
        if self._trial is not None:
            self._settings |= self._trial.settings()
            self._trial.begin(trainer, pl_module)
        try:
            self._open(trainer, pl_module)
        except Exception as error:
            self._disable("measuring", error)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._clock is None or self._profiler is None:
            return
        try:
            self._last_step = self._steps = trainer.global_step
            self._profiler.goes_on_from(trainer.global_step)
            self._passes = _logger_step(trainer)
            self._log_every = trainer.log_every_n_steps if self._is_zero else 0
            self._profiler.optimizers = trainer.optimizers
            record = self._profiler.session.record
            if self._trial is not None:
                self._trial.change_optimizers(trainer, pl_module)
                record.config["trial"] = self._trial.facts()
            record.config.update(configuration(trainer, pl_module))
            record.parallel.update(layout(trainer))
            if self._profiler.watches is not None and self._profiler.watches.losses is not None:
                losses = self._profiler.watches.losses
                losses.takes_mean = not pl_module.automatic_optimization  # Lightning divides only what it steps itself
                losses.scale = scale_of(trainer)
            self._show_in_progress_bar(trainer)
            self._undo += watch_loggers(trainer, self._clock)
            if not pl_module.automatic_optimization:
                self._watch_manual_optimizers(trainer)
            self._clock.begin_steps()
        except Exception as error:
            self._disable("measuring", error)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._close("completed")
            if self._trial is not None:
                # what the script does after `fit` is not meant for a model that was trained for seconds
                raise SystemExit(0)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close("failed", f"{type(exception).__name__}: {exception}", exception)

    # Inside a micro-batch: these are the hot path. `mark` only appends to a queue and can't fail, so needs no guard.

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        clock, profiler = self._clock, self._profiler
        if clock is None or profiler is None:
            return
        try:
            if self._is_first_batch:
                self._is_first_batch = False
                profiler.count_batch(
                    batch, module=pl_module, step=None, context=trainer.precision_plugin.train_step_context
                )
            else:
                profiler.count_batch(batch)
            if self._listener is None or not self._listener.has_seen_batch:
                clock.switch(FORWARD)
        except Exception as error:
            self._disable("measuring", error)

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        clock = self._clock
        if clock is not None:
            clock.mark(now() << PHASE_BITS | OPTIMIZER)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        clock = self._clock
        if clock is not None:
            clock.mark(now() << PHASE_BITS | BACKWARD)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        clock = self._clock
        if clock is not None:
            clock.mark(now() << PHASE_BITS | self._after_backward)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        clock = self._clock
        if clock is not None:
            clock.mark(now() << PHASE_BITS | OPTIMIZER)
            # Lightning's own count of steps, kept here: asking the Trainer for it costs more than all stamps together
            self._steps += 1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        clock, profiler = self._clock, self._profiler
        if clock is None or profiler is None:
            return
        try:
            clock.micro_batches += 1
            if self._trial is not None:
                self._trial.end_batch(batch)
            profiler.record_loss(outputs.get("loss") if isinstance(outputs, dict) else outputs)
            if self._steps == self._last_step:
                return
            self._last_step = self._steps
            profiler.end_step(self._steps)
            self._passes += 1
            if self._trial is not None:
                self._trial.end_step(trainer, pl_module, clock, self._steps)
            if self._log_every and self._passes % self._log_every == 0:
                self._log(trainer, pl_module, clock, profiler)
        except Exception as error:
            self._disable("measuring", error)

    # Between steps.

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._clock is not None:
            self._before_evaluation = self._clock.phase
            self._clock.switch(EVALUATION)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self._clock is not None:
            self._clock.switch(self._before_evaluation)

    # Inside.

    def _reset(self) -> None:
        self._trial = None
        self._profiler: StepProfiler | None = None
        self._clock: PhaseClock | None = None
        self._listener: ActionListener | None = None
        self._undo: list[Callable[[], None]] = []
        self._live: Live | None = None
        self._run_dir: str | None = None
        self._steps = 0
        self._last_step = 0
        self._passes = 0
        self._log_every = 0
        self._before_evaluation = OTHER
        self._is_first_batch = True
        self._after_backward = OTHER
        self._is_zero = False

    def _open(self, trainer: Any, pl_module: Any) -> None:
        name, version = framework_of(trainer)
        profiler = StepProfiler(pl_module, own_id=self._own_id, **self._settings)
        profiler.open(
            root=trainer.default_root_dir,
            placement=placement_of(trainer),
            device=trainer.strategy.root_device,
            framework=name,
            framework_version=version,
        )
        self._profiler, self._clock, self._run_dir = profiler, profiler.clock, profiler.run_dir
        assert profiler.clock is not None
        self._listener = ActionListener(trainer, profiler.clock)
        self._undo.append(self._listener.remove)

    def _close(self, status: str, reason: str = "", error: BaseException | None = None) -> None:
        profiler, self._profiler, self._clock = self._profiler, None, None
        try:
            while self._undo:
                self._undo.pop()()
            if profiler is None:
                return
            profiler.close(status, reason, error)
            if self._is_zero and self._trial is None:
                self._print_summary(profiler)
        except Exception as error:
            warnings.warn(f"effprof: closing the log failed ({type(error).__name__}: {error})", stacklevel=2)

    def _print_summary(self, profiler: StepProfiler) -> None:
        from effprof.analysis.analyze import analyze
        from effprof.reports.terminal import summary
        from effprof.runlog.reader import open_run

        assert self._run_dir is not None
        try:
            print(summary(analyze(open_run(self._run_dir))))
        except Exception as error:
            print(f"effprof: no summary ({type(error).__name__}: {error})")
        print(f"effprof: {self._run_dir}\n         effprof analyze {self._run_dir}")

    def _disable(self, part: str, error: Exception) -> None:
        warnings.warn(
            f"effprof: {part} failed and is off, training goes on ({type(error).__name__}: {error})", stacklevel=3
        )
        self._close("failed", f"effprof: {type(error).__name__}: {error}")

    def _log(self, trainer: Any, pl_module: Any, clock: PhaseClock, profiler: StepProfiler) -> None:
        live = profiler.live()
        if live is None:
            return
        self._live = live
        metrics = live.metrics()
        before = clock.phase
        clock.switch(LOGGING)
        step = _logger_step(trainer)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        if self._log_metrics:
            pl_module.log_dict(metrics, on_step=True, on_epoch=False, logger=False, prog_bar=False)
        clock.switch(before)

    def _show_in_progress_bar(self, trainer: Any) -> None:
        bar = trainer.progress_bar_callback
        if bar is None:
            return
        get_metrics = bar.get_metrics

        def with_figures(trainer: Any, pl_module: Any) -> dict[str, Any]:
            return {**get_metrics(trainer, pl_module), **_short(self._live)}

        bar.get_metrics = with_figures
        self._undo.append(lambda: bar.__dict__.pop("get_metrics", None))

    def _watch_manual_optimizers(self, trainer: Any) -> None:
        self._after_backward = FORWARD

        def after_step(*_: Any) -> None:
            if self._clock is not None:
                self._clock.switch(FORWARD)

        for optimizer in trainer.optimizers:
            self._undo.append(optimizer.register_step_post_hook(after_step).remove)


def _logger_step(trainer: Any) -> int:
    """The step that the Trainer itself gives its loggers, so that figures land beside the user's own."""
    return int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))


def _short(live: Live | None) -> dict[str, str]:
    if live is None:
        return {}
    shown = {}
    if live.mfu is not None:
        shown["mfu"] = f"{live.mfu:.1%}"
    if live.tokens_per_s_per_device is not None:
        shown["tok/s"] = f"{live.tokens_per_s_per_device:,.0f}"
    elif live.samples_per_s_per_device is not None:
        shown["samples/s"] = f"{live.samples_per_s_per_device:,.1f}"
    return shown
