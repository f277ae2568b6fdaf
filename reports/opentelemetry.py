"""Sends a watched run on as OpenTelemetry metrics: gauges named `effprof.…`, read when the exporter collects."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from effprof.analysis.current import Watch
from effprof.errors import EffprofError
from effprof.reports.exporters import FIGURES

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@contextmanager
def export(reader: Any = None) -> Iterator[Callable[[Watch], None]]:
    """Export until the end of the block.

    Args:
        reader: the SDK's metric reader; by default one that sends by OTLP to where the OTEL_ variables say.

    Raises:
        EffprofError: a package is missing, or nothing says where to send to.
    """
    try:
        from opentelemetry.metrics import CallbackOptions, Observation
        from opentelemetry.sdk.metrics import MeterProvider
    except ImportError as error:
        raise EffprofError(f"--otel needs a package: {error}", "pip install 'effprof[opentelemetry]'") from error
    latest: list[Watch] = []

    def gauge(value_of: Callable[[Watch], float | None]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            value = value_of(latest[0]) if latest else None
            return [] if value is None else [Observation(value, {"run": latest[0].id})]

        return observe

    def phases(_: CallbackOptions) -> Iterable[Observation]:
        watch = latest[0] if latest else None
        shares = watch.phases if watch is not None else {}
        return [Observation(share, {"run": latest[0].id, "phase": phase}) for phase, share in shares.items()]

    provider = MeterProvider(metric_readers=[reader or _otlp_reader()])
    meter = provider.get_meter("effprof")
    for name, (says, value_of) in FIGURES.items():
        meter.create_observable_gauge(f"effprof.{name}", [gauge(value_of)], description=says)
    meter.create_observable_gauge("effprof.phase_ratio", [phases], description="share of the latest steps' time")

    def show(watch: Watch) -> None:
        latest[:] = [watch]

    try:
        yield show
    finally:
        provider.shutdown()


def _otlp_reader() -> Any:
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        raise EffprofError(
            "--otel: nothing says where to send to", f"set {_ENDPOINTS[1]}, such as http://localhost:4318"
        )
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    try:
        if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").startswith("grpc"):
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        else:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError as error:
        raise EffprofError(f"--otel needs an exporter: {error}", "pip install opentelemetry-exporter-otlp") from error
    return PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=5000)
