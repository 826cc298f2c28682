"""Command `copy`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import Output, print_json, say, size_text


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The registry to copy from, or a hub of DeltaHub.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The registry to copy to.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Deltas to copy; by default all.")
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Copy deltas from one registry, or a hub of DeltaHub, to another registry: all versions, aliases, tags and history, every byte verified.

    Existing content is not copied again, so an interrupted copy resumes where it stopped.

    [dim]deltahub copy local team[/dim]

    [dim]deltahub copy team local acme/ner[/dim]
    """
    from deltahub.errors import ConfigError
    from deltahub.hub.copy import copy_from_hub
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.mirror import copy as mirror
    from deltahub.sources.huggingface import HuggingFace

    hub = Hub.open()
    if source == target:
        raise typer.BadParameter(f"{source} cannot be copied to itself; name two registries.")
    if isinstance(destination := hub.source(target), HuggingFace):
        msg = (
            f"{destination.place} takes no history with the times and authors of others. Copy into the registry that it serves, "
            "where you have access to that, or push the versions you want: deltahub pull, deltahub push."
        )
        raise ConfigError(msg)
    out = Output(as_json=json, quiet=quiet)
    paths = [Reference.parse(name).path for name in names] if names else None
    with out.progress("Copying", None) as progress:
        origin = hub.source(source)
        copying = (
            copy_from_hub(origin, hub.registry(target), paths, progress)
            if isinstance(origin, HuggingFace)
            else mirror(registry := hub.registry(source), hub.registry(target), paths, progress, hub.vouched(registry))
        )
        results = list(copying)
    if json:
        print_json([asdict(copied) for copied in results])
        return
    changed_deltas = [copied for copied in results if copied.changed]
    if changed_deltas:
        rows = [
            (copied.name, " ".join(copied.versions) or "aliases, tags or its name", size_text(copied.size))
            for copied in changed_deltas
        ]
        out.rows(("name", "new", "moved"), rows)
    if not quiet:
        size = size_text(sum(copied.size for copied in results))
        say(
            f"{len(results)} looked at, {len(changed_deltas)} changed, {size} moved; "
            f"{target} has all of {'them' if paths else source} now.",
            err=True,
        )
