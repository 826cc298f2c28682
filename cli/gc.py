"""Command `gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, SourceOpt, seconds
from .output import Output, size_text


def gc(
    source: SourceOpt = None,
    grace: Annotated[str, typer.Option("--grace", metavar="AGE", help="Minimum time unused: 12h, 14d, 4w.")] = "14d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Delete data that no version needs: leftovers of removed versions and of interrupted pushes.

    The first run that finds unused data starts its grace period; a later run deletes it. It is safe during pushes.

    [dim]deltahub gc --dry-run[/dim]

    [dim]deltahub gc --grace 14d[/dim]
    """
    from datetime import timedelta

    from deltahub.hub.hub import Hub
    from deltahub.registry.gc import collect

    wait = timedelta(seconds=seconds(grace, "--grace"))
    collection = collect(Hub.open().registry(source), wait, dry_run=dry_run)
    freed_bytes, waiting_bytes = sum(collection.freed.values()), sum(collection.waiting.values())
    word = "would be deleted" if dry_run else "deleted"
    data = {
        "deleted": sorted(collection.freed),
        "freed": freed_bytes,
        "waiting": sorted(collection.waiting),
        "waiting_size": waiting_bytes,
        "next": collection.next,
        "dry_run": dry_run,
    }
    next_line = f"{len(collection.waiting)} more, {size_text(waiting_bytes)}, are unused; the first may go from {collection.next}."
    out = Output(as_json=json, quiet=quiet)
    out.result(
        data,
        f"{len(collection.freed)} {word}, {size_text(freed_bytes)} freed.",
        *([next_line] if collection.waiting else []),
    )
