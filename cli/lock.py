"""Commands `lock` and `sync`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import Output, print_json, size_text

_FILE = "deltahub.lock"  # same as in deltahub.hub.lockfile, without importing it for a help page


def lock(
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[REF...]", help="Deltas to pin; by default those in the file.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The lock file.")] = Path(_FILE),
    add: Annotated[bool, typer.Option("--add", help="Keep what the file holds, and pin these too.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Pin deltas to their current source, version and digest, in a file for your repository.

    With DELTAHUB_LOCK set to that file, `pull` and `from_finetuned` use exactly the pinned versions.

    [dim]deltahub lock acme/ner@champion DeltaHub/sst2-t5-base -o deltahub.lock[/dim]

    [dim]deltahub lock[/dim]
    """
    from dataclasses import asdict

    from deltahub.hub.hub import Hub
    from deltahub.hub.lockfile import Lock
    from deltahub.reference import Reference

    hub = Hub.open()
    recorded_pins = Lock.read(output).pins if output.exists() or not refs else {}
    if refs:
        references = [Reference.parse(ref) for ref in refs]
    else:  # pin again, each from the same source
        references = [Reference.parse(f"{pin.source}:{key}") for key, pin in recorded_pins.items()]
    new_pins = {str(reference.anywhere()): hub.pin(reference) for reference in references}
    pins = {**recorded_pins, **new_pins} if add else new_pins
    if pins != recorded_pins:
        Lock(output, pins).write()
    out = Output(as_json=json, quiet=quiet)
    if json:
        print_json({key: asdict(pins[key]) for key in sorted(pins)})
        return
    rows = []
    for key in sorted({*recorded_pins, *pins}):
        old, new = recorded_pins.get(key), pins.get(key)
        change = "" if old == new else f"was {old}" if old and new else "added" if new else "removed"
        rows.append((key, str(new) if new else "-", new.digest.short if new else "-", change))
    out.rows(("reference", "is", "digest", "change"), rows)


def sync(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The lock file.")] = Path(_FILE),
    prune: Annotated[bool, typer.Option("--prune", help="Remove all other deltas from the cache.")] = False,
    keep: Annotated[bool, typer.Option("--keep", hidden=True, help="The default; kept for older scripts.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Pull every delta pinned in a lock file into the cache, verifying every byte.

    The cache is shared by all projects of this user. With --prune, all deltas not pinned in this file are removed from it, once
    all the pinned ones are there; deltas protected by `deltahub cache pin` are kept.

    [dim]deltahub sync deltahub.lock[/dim]

    [dim]deltahub sync --prune[/dim]
    """
    if keep and prune:
        raise typer.BadParameter("--keep is the default and contradicts --prune. Leave one of them out.")
    from deltahub.cache import maintenance
    from deltahub.hub.hub import Hub
    from deltahub.hub.lockfile import Lock

    hub = Hub.open()
    locked = Lock.read(file)
    out = Output(as_json=json, quiet=quiet)
    with out.progress("Syncing", None) as progress:
        pulled = hub.sync(locked, progress)
    removed = maintenance.keep(hub.cache, locked.digests) if prune else []
    data = {
        "held": [
            {"reference": str(each.reference), "digest": each.digest, "folder": str(each.folder)} for each in pulled
        ],
        "removed": [entry.digest for entry in removed],
    }
    freed = f"; {len(removed)} removed, {size_text(sum(entry.size for entry in removed))} freed" if prune else ""
    out.result(data, f"{len(pulled)} in the cache, every byte checked{freed}.")
