"""`effprof device`: what a chip can do at most, this machine's or any in the catalogue."""

from __future__ import annotations

import importlib.util
import json
from typing import Annotated

import typer

from effprof.errors import EffprofError


def command(
    name: Annotated[
        str | None, typer.Option(metavar="CHIP", help='A chip that need not be here, such as "NVIDIA H100 NVL".')
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(metavar="GB", help="Its memory, where the name alone is ambiguous.")
    ] = None,
    compute_units: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Its SMs or CUs; for a MIG slice, the slice's own.")
    ] = None,
    power_limit_w: Annotated[float | None, typer.Option(metavar="W", help="Its board's power limit.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure matrix products and a copy on this machine (seconds).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document (effprof.device/1).")] = False,
) -> None:
    """Shows a chip's dense peaks and their sources.

    This machine's chip without --name; --measure adds what the machine reaches.
    """
    from effprof.hardware.report import describe_machine, describe_named
    from effprof.hardware.show import render

    facts = {"--memory-gb": memory_gb, "--compute-units": compute_units, "--power-limit-w": power_limit_w}
    for option, value in facts.items():
        if value is not None and not 0 < value < float("inf"):
            raise EffprofError(
                f"{option} {value:g}: not a positive number", f"give {option} of the chip, or leave it out"
            )
        if value is not None and name is None:
            raise EffprofError(f"{option} describes a chip that is not named", 'add --name, such as --name "H100"')
    if name is not None and measure:
        raise EffprofError("--measure measures this machine, not the chip of --name", "leave one of the two out")
    if measure and importlib.util.find_spec("torch") is None:
        raise EffprofError("--measure needs torch, which is not installed", 'run: pip install "effprof[torch]"')
    if name is None:
        report = describe_machine(measure)
    else:
        memory_bytes = None if memory_gb is None else memory_gb * 1e9
        report = describe_named(
            name, memory_bytes=memory_bytes, compute_units=compute_units, power_limit_w=power_limit_w
        )
    typer.echo(json.dumps(report, indent=2) if as_json else render(report))
