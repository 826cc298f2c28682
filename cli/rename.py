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
    from deltahub.errors import ReferenceSyntaxError
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.rename import rename as give_name

    old_reference, new_reference = Reference.parse(old), Reference.parse(new)
    if old_reference.version or new_reference.version:
        raise ReferenceSyntaxError("All versions of a delta have one name. Leave out '@...'.")
    registry, document = Hub.open().held(old_reference)
    if new_reference.source not in (None, registry.name):
        msg = f"{old} is in {registry.name}, and a name stays in its registry. Leave out {new_reference.source!r}, or copy it there."
        raise ReferenceSyntaxError(msg)
    give_name(registry, Reference.parse(document.name), new_reference)
    exact = f"{registry.name}:{new_reference.path}"
    is_unchanged = document.name == new_reference.path
    line = "It has that name already." if is_unchanged else f"{document.name} leads to it from now on."
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "before": document.name}, exact, line)
