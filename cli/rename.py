"""Command `rename`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import Output


def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A delta: [source:]namespace/name.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new namespace/name.")],
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Rename a delta; the old name then redirects to the new one.

    [dim]deltahub rename DeltaHub/sst2-t5-base acme/sentiment[/dim]
    """
    from deltahub.hub.edits import rename as give_name
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    changed, before = give_name(Hub.open(), Reference.parse(old), Reference.parse(new))
    exact = str(changed.reference)
    line = "It has that name already." if before == changed.reference.path else f"{before} leads to it from now on."
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "before": before}, exact, line)
