"""`effprof watch`: how a training does while it runs, read from its logs alone."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from effprof.errors import EffprofError

if TYPE_CHECKING:
    from effprof.analysis.current import Watch

UP = "\033[{}F\033[J"  # to the beginning of the view, and wipe it


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory, or the directory that holds the runs.")],
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", help="Between two looks.")] = 2.0,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Latest steps that the figures rest on.")] = 200,
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document per look and line (effprof.watch/1).")
    ] = False,
    peak_tflops: Annotated[
        float | None,
        typer.Option("--peak-tflops", metavar="TFLOPS", help="Dense peak of one device, where the record has none."),
    ] = None,
    prometheus: Annotated[
        int | None,
        typer.Option("--prometheus", metavar="PORT", help="Also serve the figures at /metrics of this port."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address that --prometheus listens on.")
    ] = "127.0.0.1",
    otel: Annotated[
        bool, typer.Option("--otel", help="Also export OpenTelemetry metrics, where the OTEL_ variables say.")
    ] = False,
) -> int:
    """Shows how a training does while it runs.

    Reads the logs alone, only what is new in them, from any machine that sees the directory. Ends when the run has.
    """
    from effprof.analysis.locate import locate_run
    from effprof.reports import exporters
    from effprof.runlog.tail import RunTail, require_run

    if interval <= 0 or steps < 1:
        raise EffprofError("--interval and --steps must be positive", "leave them out for 2 s and 200 steps")
    path, note = locate_run(run)
    if note:
        typer.echo(f"effprof: {note}", err=True)
    require_run(path)
    tail = RunTail(path, steps)
    view = _View(as_json=as_json)
    watch = None
    with (
        contextlib.suppress(KeyboardInterrupt),  # the usual way to stop looking
        exporters.open_all(prometheus_port=prometheus, host=host, otel=otel) as show,
    ):
        while True:
            began = time.monotonic()
            watch = _look(tail, peak_tflops)
            if watch is not None:
                view.show(watch)
                show(watch)
            if once or (watch is not None and watch.ended != "running"):
                break
            time.sleep(max(0.05, interval - (time.monotonic() - began)))
    if watch is None and once:
        raise EffprofError(f"{path}: no log of a rank yet", "wait until training has begun, or give its run directory")
    if not as_json and watch is not None and watch.ended != "running":
        typer.echo(f"\neffprof analyze {path}")
    return 0


def _look(tail: object, peak_tflops: float | None) -> Watch | None:
    from effprof.analysis.current import current
    from effprof.runlog.tail import RunTail

    assert isinstance(tail, RunTail)
    run = tail.poll()
    return None if run is None else current(run, time.time(), peak_tflops)


class _View:
    """Redraws in place on a terminal; elsewhere a line a look."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._is_terminal = sys.stdout.isatty()
        self._lines = 0

    def show(self, watch: Watch) -> None:
        from effprof.reports import watch as reports

        if self._as_json:
            typer.echo(reports.as_json(watch))
        elif self._is_terminal:
            text = reports.render(watch)
            if self._lines:
                typer.echo(UP.format(self._lines), nl=False)
            typer.echo(text)
            self._lines = text.count("\n") + 1
        else:
            typer.echo(reports.line(watch))
