"""A watched run's figures for other systems: Prometheus scrapes them, OpenTelemetry sends them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from effprof.analysis.current import Watch

# Name after the prefix `effprof_` → what it is, with its unit; the value of a watch is None where not measured.
FIGURES: dict[str, tuple[str, Callable[[Watch], float | None]]] = {
    "mfu_ratio": ("model FLOPs per second over dense peak, exact convention", lambda watch: watch.mfu.value),
    "tokens_per_second": ("tokens of the whole job", lambda watch: watch.tokens_per_s.median),
    "tokens_per_second_per_device": ("tokens of one device", lambda watch: watch.tokens_per_s_per_device.median),
    "samples_per_second": ("samples of the whole job", lambda watch: watch.samples_per_s.median),
    "step_seconds": ("median time of an optimizer step", lambda watch: watch.step_time_s.median),
    "step": ("latest optimizer step that all ranks finished", lambda watch: watch.step),
    "loss": ("training loss of the latest step", lambda watch: watch.loss),
    "memory_bytes": (
        "allocator's use, largest of all ranks; resident memory on a CPU",
        lambda watch: watch.memory_bytes,
    ),
    "peak_memory_bytes": ("its peak", lambda watch: watch.peak_memory_bytes),
    "last_record_age_seconds": ("since the last record", lambda watch: watch.age_s),
    "running": ("1 while the run is running", lambda watch: float(watch.ended == "running")),
}


@contextmanager
def open_all(*, prometheus_port: int | None, host: str, otel: bool) -> Iterator[Callable[[Watch], None]]:
    """Open the exporters that are asked for; what it yields hands a look to all of them.

    Raises:
        EffprofError: an exporter's package is missing, its port is taken, or nothing says where to send to.
    """
    with ExitStack() as stack:
        exporters: list[Callable[[Watch], None]] = []
        if prometheus_port is not None:
            from effprof.reports.prometheus import serve

            exporters.append(stack.enter_context(serve(prometheus_port, host)))
        if otel:
            from effprof.reports.opentelemetry import export

            exporters.append(stack.enter_context(export()))

        def show(watch: Watch) -> None:
            for exporter in exporters:
                exporter(watch)

        yield show
