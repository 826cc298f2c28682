"""Commands `rm`, `rename` and `gc`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, RefArg, SourceOpt, seconds
from .output import Output, size_text


def rm(
    ref: RefArg,
    message: Annotated[
        str, typer.Option("--message", "-m", help="The reason, shown to users who look for it later.")
    ] = "",
    lock: Annotated[
        list[Path] | None, typer.Option("--lock", metavar="FILE", help="Refuse if this lock file pins it.")
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Remove one version of a delta; later requests for it report when and by whom it was removed.

    Its number is never reused. A version is not removed if an alias points to it or a lock file pins it; the lock files are
    those given with --lock, and the one in DELTAHUB_LOCK.

    [dim]deltahub rm DeltaHub/sst2-t5-base@v2 -m "trained on the test set"[/dim]
    """
    from deltahub.errors import ReferenceSyntaxError
    from deltahub.hub.hub import Hub
    from deltahub.hub.lockfile import Lock, active
    from deltahub.reference import Reference
    from deltahub.registry.edits import remove

    reference = Reference.parse(ref)
    if reference.version is None:
        msg = f"Say which version of {reference.path} is to go, e.g. {reference.path}@v1; `deltahub log` lists them."
        raise ReferenceSyntaxError(msg)
    locks = [Lock.read(path) for path in lock or ()]
    needed = {digest for each in (*locks, active()) if each for digest in each.digests}
    registry, document = Hub.open().held(reference)
    document, version = remove(registry, document.name, reference.version, message=message, needed=needed)
    exact = f"{registry.name}:{document.name}@{version}"
    out = Output(as_json=json, quiet=quiet)
    data = {
        "reference": exact,
        "removed": exact,
        "digest": document.removed[version].digest,
        "left": list(document.versions),
    }
    out.result(data, f"{exact} is removed", f"Still there: {' '.join(document.versions) or 'no version'}")


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
