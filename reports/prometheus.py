"""Serves a watched run to Prometheus: gauges at `/metrics`, named `effprof_…` with their unit at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from effprof.analysis.current import Watch
from effprof.errors import EffprofError
from effprof.reports.exporters import FIGURES


class Collector:
    """Turns the latest look into gauges when it is scraped; what is not measured is left out, not zero."""

    def __init__(self) -> None:
        self.watch: Watch | None = None

    def collect(self) -> Iterator[Any]:
        """The gauges, labelled by run; phases and devices by their own names as well."""
        from prometheus_client.core import GaugeMetricFamily

        watch = self.watch
        if watch is None:
            return
        for name, (says, value_of) in FIGURES.items():
            value = value_of(watch)
            if value is not None:
                gauge = GaugeMetricFamily(f"effprof_{name}", says, labels=["run"])
                gauge.add_metric([watch.id], value)
                yield gauge
        phases = GaugeMetricFamily("effprof_phase_ratio", "share of the latest steps' time", labels=["run", "phase"])
        for phase, share in watch.phases.items():
            phases.add_metric([watch.id, phase], share)
        yield phases
        readings = GaugeMetricFamily(
            "effprof_device_reading", "latest reading, unit in its name", labels=["run", "device", "reading"]
        )
        for device in watch.devices:
            for reading, number in device.readings.items():
                if number is not None:
                    readings.add_metric([watch.id, device.device, reading], number)
        yield readings


@contextmanager
def serve(port: int, host: str = "127.0.0.1") -> Iterator[Callable[[Watch], None]]:
    """Serve until the end of the block.

    Args:
        port: TCP port.
        host: address to listen on.

    Raises:
        EffprofError: the package is missing, or the port cannot be had.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise EffprofError(f"--prometheus needs a package: {error}", "pip install 'effprof[prometheus]'") from error
    collector = Collector()
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise EffprofError(f"--prometheus {port}: {why}", "give a port that is free, below 65536") from error

    def show(watch: Watch) -> None:
        collector.watch = watch

    try:
        yield show
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=2)
