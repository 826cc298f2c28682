"""Command `rm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, RefArg
from .output import Output


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
    from deltahub.hub.edits import remove
    from deltahub.hub.hub import Hub
    from deltahub.hub.lockfile import Lock, active
    from deltahub.reference import Reference

    locks = [Lock.read(path) for path in lock or ()]
    needed = {digest for each in (*locks, active()) if each for digest in each.digests}
    changed = remove(Hub.open(), Reference.parse(ref), message=message, needed=needed)
    exact, document = str(changed.reference), changed.document
    tombstone = document.removed.get(changed.reference.version or "")  # not in a repo of git
    out = Output(as_json=json, quiet=quiet)
    data = {
        "reference": exact,
        "removed": exact,
        "digest": tombstone.digest if tombstone else None,
        "left": list(document.versions),
    }
    out.result(data, f"{exact} is removed", f"Still there: {' '.join(document.versions) or 'no version'}")
