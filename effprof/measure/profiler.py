"""Measures training steps: explicit phases, token counts, device time, and the log they go to."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping
from time import perf_counter_ns as now
from typing import TYPE_CHECKING, Any

from effprof.errors import EffprofError
from effprof.measure.clock import EFFPROF, PHASE_BITS, PhaseClock
from effprof.measure.detection import Detection, detect_workload
from effprof.measure.device_clock import device_of
from effprof.measure.facts.gather import loop_facts
from effprof.measure.facts.optimizer import state_facts
from effprof.measure.facts.parallel import parallel_facts
from effprof.measure.live import Live, live_figures
from effprof.measure.memory_record import MemoryRecord
from effprof.measure.placement import Placement, placement_from_environment
from effprof.measure.plain_loop import PlainLoop
from effprof.measure.recorder import Late
from effprof.measure.session import Session
from effprof.measure.tokens import TokenCounter
from effprof.measure.watches import Watches
from effprof.runlog.layout import prepare_own_id
from effprof.runlog.schema import BEGAN, Line

if TYPE_CHECKING:
    import torch


class StepProfiler(PlainLoop):
    """Measures the steps of a training loop and writes them to a run directory.

    In a plain loop, per micro-batch::

        profiler = StepProfiler(model)
        for batch in profiler.watch(loader):
            with profiler.phase("forward"):
                loss = model(**batch).loss
            with profiler.phase("backward"):
                loss.backward()
            with profiler.phase("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
        profiler.close()

    or `with profiler.step(batch): ...` around one optimizer step of a loop that `watch` does not fit. Never
    synchronises a device, calls a collective or waits for a file; an error inside effprof disables the part that
    failed and never reaches the loop.

    Args:
        model: the module that is trained; its FLOPs are counted at the first batch.
        optimizer: the optimizer, or several, for the bytes of their state.
        run_dir: where to write; `effprof_runs/<id>` below the working directory by default.
        peak_tflops: dense peak of one device in TFLOP/s, where the catalogue does not know it.
        flops_per_step: model FLOPs of one optimizer step of the whole job, forward and backward, instead of a count.
        tokens_fn: batch → number of tokens, or → mapping of counters, where they can't be found.
        model_config: a `transformers` config (object or mapping) that describes `model`.
        accumulate: micro-batches per optimizer step, for `watch`.
        telemetry: whether to run the telemetry sampler (one process per node).
        experts_every_n_steps: how often the expert load of an MoE is sampled; 0 turns it off.
        routers: names routers that effprof does not know; see `effprof.measure.experts`.
        kernel_window: True records a few steps with torch's own profiler once, N every N steps: the account is then
            split by kernels. Without it, `touch RUN/profile` or SIGUSR2 asks for a window.
        keep_trace: whether the raw traces of kernel windows are kept beside the log.
        track_memory: whether one optimizer step is followed tensor by tensor, for the truth beside the prediction; that
            step takes several times longer.
        detect: whether FLOPs, peak and memory are found out at the first batch; a trial compares speeds alone.
        own_id: the run's id where an adapter prepared it earlier (see `effprof.runlog.layout.prepare_own_id`).
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        *,
        optimizer: Any = None,
        run_dir: str | os.PathLike[str] | None = None,
        peak_tflops: float | None = None,
        flops_per_step: float | None = None,
        tokens_fn: Callable[[Any], Any] | None = None,
        model_config: Any = None,
        accumulate: int = 1,
        telemetry: bool = True,
        experts_every_n_steps: int = 50,
        routers: Mapping[str, Any] | None = None,
        kernel_window: bool | int = False,
        keep_trace: bool = False,
        track_memory: bool = False,
        detect: bool = True,
        own_id: str | None = None,
    ) -> None:
        if accumulate < 1:
            raise EffprofError(f"accumulate={accumulate}", "pass the number of micro-batches per optimizer step")
        self._model = model
        self.optimizers: list[Any] = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
        self._run_dir = run_dir
        self._peak_tflops = peak_tflops
        self._flops_per_step = flops_per_step
        self._tokens_fn = tokens_fn
        self._model_config = model_config
        self._accumulate = accumulate
        self._telemetry = telemetry
        self._experts_every = experts_every_n_steps
        self._routers = routers
        self._kernel_window = kernel_window
        self._keep_trace = keep_trace
        self._track_memory = track_memory
        self._detects = detect
        self._memory: MemoryRecord | None = None
        self._own_id = own_id or prepare_own_id()
        self._session: Session | None = None
        self._detection: Detection | None = None
        self._tokens: TokenCounter | None = None
        self.watches: Watches | None = None
        self._parts: list[Callable[[int, int], None]] = []
        self._steps = 0
        self._given_flops = 0
        self._is_on_device = False
        self._is_closing = False
        self.clock: PhaseClock | None = None

    # What a plain loop uses, beside `watch`, `step` and `phase`.

    def close(self, status: str = "completed", reason: str = "", error: BaseException | None = None) -> None:
        """Finish the log and say where it is.

        `error` is what training failed with: where memory ran out, the log ends with what filled it.
        """
        if self._session is None:
            return
        if self._memory is not None:
            with self._session.guarded("memory account"):
                self._memory.close(error, self.optimizers)
        session, self._session = self._session, None
        self._is_closing = True
        atexit.unregister(self._close_at_exit)
        if self.watches is not None:
            session.record.config.update(self.watches.close())
        if self._tokens is not None and self._tokens.input_shapes:
            session.record.config["input_shapes"] = len(self._tokens.input_shapes)
        session.close(status, reason)
        self.clock = None
        if session.placement.rank == 0 and session.record.framework == "pytorch":
            print(f"effprof: {session.run_dir}\n         effprof analyze {session.run_dir}", file=sys.stderr)

    def __enter__(self) -> StepProfiler:
        self._require_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            self.close()
        else:
            self.close("failed", f"{kind.__name__}: {error}", error)

    @property
    def run_dir(self) -> str | None:
        """The run's directory, once it is open."""
        return str(self._session.run_dir) if self._session else None

    # What a framework's adapter uses.

    @property
    def session(self) -> Session:
        """The open session.

        Raises:
            EffprofError: `open` was not called, or the profiler is closed.
        """
        if self._session is None:
            raise EffprofError("the profiler is not open", "use it between its start and close()")
        return self._session

    def open(
        self,
        *,
        root: str | os.PathLike[str] = ".",
        placement: Placement | None = None,
        device: torch.device | None = None,
        framework: str = "pytorch",
        framework_version: str = "",
    ) -> None:
        """Start measuring: from here on time is accounted for. Does nothing if already open."""
        if self._session is not None:
            return
        from effprof.hardware.identity import identify

        self._is_closing = False
        device = device or device_of(self._model)
        self._is_on_device = device.type != "cpu"
        self._tokens = TokenCounter(causal=None, window=None, tokens_fn=self._tokens_fn)
        self._session = Session(
            run_dir=self._run_dir,
            root=root,
            own_id=self._own_id,
            placement=placement or placement_from_environment(),
            device=identify(device.type, device.index or 0),
            framework=framework,
            framework_version=framework_version,
            late=(self._poll_tokens, self._poll_watches),
            each_second=self._each_second,
            telemetry=self._telemetry,
        )
        self.clock = self._session.clock
        self._memory = MemoryRecord(self._session, self._model, self._model_config, tracks=self._track_memory)
        self.watches = Watches(
            self._session,
            self._model,
            device,
            experts_every_n_steps=self._experts_every,
            routers=self._routers,
            kernel_window=self._kernel_window,
            keep_trace=self._keep_trace,
        )
        self._parts = [*self.watches.parts, *([self._memory.on_step_end] if self._track_memory else [])]
        atexit.register(self._close_at_exit)

    def goes_on_from(self, step: int) -> None:
        """Record that training begins behind optimizer step `step`, 0 or that of the checkpoint it was resumed from."""
        self.session.recorder.add_event(BEGAN, f"training goes on from step {step}", step=step)

    def count_batch(
        self,
        batch: Any,
        *,
        module: torch.nn.Module | None = None,
        step: Callable[[Any, Any], Any] | None = None,
        context: Callable[[], Any] | None = None,
    ) -> None:
        """Count what a micro-batch holds; at the first one also detect the model's FLOPs and the peak.

        Args:
            batch: the micro-batch.
            module: what is trained, where it differs from the constructor's `model`.
            step: (module copy, batch copy) → loss, how one micro-batch is run, for the operation count.
            context: makes the context manager (autocast) that a micro-batch runs under.
        """
        clock = self.clock
        if clock is None:
            return
        before = clock.phase
        clock.mark(now() << PHASE_BITS | EFFPROF)
        if self._detection is None:
            self._read_facts(module or self._model)
            with self.session.guarded("detection"):
                self._detect(module or self._model, batch, step, context)
            with self.session.guarded("memory forecast"):
                if self._memory is not None and self._detects:
                    self._memory.forecast(module or self._model, batch, step, context)
        tokens = self._tokens  # detection may just have put a better informed counter there
        try:
            if tokens is None:
                pass
            elif self._is_on_device:
                sequence = clock.step_sequence
                self.session.recorder.expect(sequence)
                tokens.submit(batch, sequence)
            else:
                clock.add_counts(tokens.count(batch))
        except Exception as error:
            self._disable_tokens(error)
        if self._track_memory and self._memory is not None:
            with self.session.guarded("memory tracker"):
                self._memory.begin(batch)
        clock.switch(before)

    def record_loss(self, loss: Any) -> None:
        """Put a micro-batch's loss, a tensor of one element, on record; a step's is the mean. Never waits for it."""
        if self.watches is not None:
            self.watches.add_loss(loss)

    def end_micro_batch(self) -> None:
        """A micro-batch is done."""
        if self.clock is not None:
            self.clock.micro_batches += 1

    def end_step(self, step: int) -> None:
        """An optimizer step is done; `step` counts them, this one included."""
        clock = self.clock
        if clock is None:
            return
        self._steps = step
        sequence = clock.head
        if self._detection is None:  # no batch was shown: what was given still holds
            with self.session.guarded("detection"):
                self._detect(self._model, None, None, None)
        if self._given_flops:
            clock.add_given_flops(self._given_flops)
        clock.end_step(step)
        if sequence < 2:
            self._end_first_steps(sequence)
        # whatever samples steps; empty in a plain training, where a step ends here
        for end_part in self._parts:
            end_part(sequence, step)

    def _end_first_steps(self, sequence: int) -> None:
        if self.watches is not None:
            self.watches.end_first_steps()
        if sequence > 0:
            return
        self.session.record.config.update(state_facts(self.optimizers))
        if self._memory is not None:
            with self.session.guarded("memory of the states"):
                self._memory.record_states(self.optimizers)

    def live(self) -> Live | None:
        """MFU and throughput of this rank since the last call; None where no step was finished in between."""
        if self._session is None or self.clock is None or self._detection is None:
            return None
        source = self._session.recorder if self._is_on_device else self.clock
        counts, step_ns = source.take_sums()
        return live_figures(counts, step_ns, self._session.record, self._session.placement)

    # Inside.

    def _require_open(self) -> PhaseClock:
        self.open()
        assert self.clock is not None
        return self.clock

    def _detect(
        self,
        module: torch.nn.Module | None,
        batch: Any,
        step: Callable[[Any, Any], Any] | None,
        context: Callable[[], Any] | None,
    ) -> None:
        session = self.session
        self._detection = Detection()  # once, whatever happens
        if not self._detects:
            self._tokens = self._detection.token_counter(self._tokens_fn)
            return
        self._detection = detect_workload(
            module,
            batch,
            session.device,
            config=self._model_config,
            step=step,
            context=context,
            peak_tflops=self._peak_tflops,
            flops_per_step=self._flops_per_step,
            data_parallel_size=session.placement.data_parallel_size,
            measures_peak=session.placement.rank == 0,
        )
        self._given_flops = self._detection.given_flops
        self._tokens = self._detection.token_counter(self._tokens_fn)
        self._detection.put_into(session.record)
        for warning in self._detection.warnings:
            session.warn(warning["code"], warning["message"])
        session.write_record()

    def _read_facts(self, module: torch.nn.Module | None) -> None:
        """Read the loop's settings, where no framework's adapter has."""
        session = self.session
        if session.record.framework == "pytorch":
            device = session.device
            session.record.config.update(
                {"accumulate": self._accumulate}
                | loop_facts(module, self.optimizers, self._loader, device.type, device.index or 0)
            )
            session.record.parallel.update(parallel_facts(module))

    def _disable_tokens(self, error: Exception) -> None:
        self._tokens = None
        self.session.warn("tokens_disabled", f"counting tokens failed and is off ({type(error).__name__}: {error})")

    def _poll_tokens(self) -> list[tuple[int, dict[str, int]]]:
        if self._tokens is None or not self._is_on_device:
            return []
        return self._tokens.poll(wait=self._is_closing)  # training is over then, waiting holds nobody up

    def _poll_watches(self) -> Late:
        return self.watches.poll_late(is_closing=self._is_closing) if self.watches is not None else []

    def _each_second(self) -> list[Line]:
        lines = self.watches.each_second() if self.watches is not None else []
        if self._tokens is not None and self._session is not None:
            for warning in self._tokens.new_warnings():
                self._session.warn(warning["code"], warning["message"], aloud=False)
        return lines

    def _close_at_exit(self) -> None:
        # the interpreter leaves the last uncaught exception here before it runs exit handlers
        error = getattr(sys, "last_value", None)
        if error is None:
            self.close()
        else:
            self.close("failed", f"{type(error).__name__}: {error}", error)
