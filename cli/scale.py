"""Command `scale`."""

from __future__ import annotations

from typing import Annotated

import typer

from .combine import DeltaArg, ForceOpt, HeadsOpt, ToOpt, print_written
from .options import JsonOpt, QuietOpt
from .output import Output


def scale(
    delta: DeltaArg,
    factor: Annotated[float, typer.Argument(metavar="FACTOR", help="A number other than zero; after -- if negative.")],
    to: ToOpt,
    heads: HeadsOpt = None,
    force: ForceOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Write a delta whose update is FACTOR times that of another.

    [dim]deltahub scale acme/ner 0.5 --to ./half[/dim]

    [dim]deltahub scale ./ckpt --to ./forget -- -1[/dim]
    """
    from deltahub.algebra.scale import scale as compute

    print_written(Output(as_json=json, quiet=quiet), compute(delta, factor, to, heads=heads, force=force))
