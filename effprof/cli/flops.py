"""`effprof flops`: what one training sequence of a Hugging Face model costs, from its config.json alone."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A model's config.json, or the folder that holds it.")
    ],
    seq: Annotated[
        int | None, typer.Option("--seq", help="Tokens per sequence (of the source, in an encoder-decoder).")
    ] = None,
    target_seq: Annotated[
        int | None, typer.Option("--target-seq", help="Tokens of the target, in an encoder-decoder (default: --seq).")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Side of the image for vision models (default: the config's).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document (effprof.flops/1).")] = False,
) -> None:
    """Counts a model's training FLOPs and parameters.

    FLOPs are forward + backward of one unpadded sequence (or image), in every convention.
    """
    from effprof.workload.architecture import from_hf_config
    from effprof.workload.config_file import read_config_file
    from effprof.workload.flops import report

    architecture = from_hf_config(read_config_file(config), image_size=image_size)
    answer = report(architecture, seq, target_seq)
    if as_json:
        typer.echo(json.dumps(answer.to_json(), indent=2))
        return
    from effprof.workload.flops_text import render

    typer.echo(render(answer))
