"""Command `retention`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOpt, QuietOpt, SourceOpt, seconds, split_tags
from .output import Output, size_text

if TYPE_CHECKING:
    from deltahub.hub.retention import Decision


def retention(
    namespace: Annotated[str, typer.Argument(metavar="NAMESPACE", help="Whose deltas.")],
    keep: Annotated[int, typer.Option("--keep", min=1, help="How many of the newest versions of each delta stay.")] = 5,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Minimum age of a version to remove: 30d, 12w.")
    ] = "90d",
    keep_tag: Annotated[
        list[str] | None,
        typer.Option("--keep-tag", metavar="TAG", help="Keep versions with this tag; may be repeated."),
    ] = None,
    lock: Annotated[
        list[Path] | None,
        typer.Option("--lock", metavar="FILE", help="Keep what this lock file pins; may be repeated."),
    ] = None,
    source: SourceOpt = None,
    apply: Annotated[bool, typer.Option("--apply", help="Remove them; else only print what would be removed.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Remove old versions of a namespace's deltas: by default only show which.

    A version stays while an alias, a branch, a requested move or a lock file names it. Lock files are those given with --lock, and
    the one in DELTAHUB_LOCK. `deltahub gc` deletes the files later.

    [dim]deltahub retention acme --keep 10 --older-than 180d[/dim]

    [dim]deltahub retention acme --keep 3 --keep-tag release --lock prod.lock --apply[/dim]
    """
    from datetime import timedelta

    from deltahub.hub import retention as rules
    from deltahub.hub.hub import Hub
    from deltahub.hub.lockfile import Lock, active
    from deltahub.reference import check_name

    locks = [Lock.read(path) for path in lock or ()]
    needed = {digest for each in (*locks, active()) if each for digest in each.digests}
    age = timedelta(seconds=seconds(older_than, "--older-than"))
    rule = rules.Rule(keep, age, frozenset(split_tags(keep_tag)))
    hub = Hub.open()
    decided = list(rules.decide(hub, check_name(namespace, "namespace"), rule, source=source, needed=needed))
    due = [decision for decision in decided if decision.due]
    if apply:
        message = f"retention: more than {keep} versions, and older than {older_than}"
        due = list(rules.apply(hub, due, message=message, needed=needed))
    _tell(Output(as_json=json, quiet=quiet), due, [each for each in decided if not each.due], applied=apply)


def _tell(out: Output, due: list[Decision], kept: list[Decision], *, applied: bool) -> None:
    gone, failed = [each for each in due if not each.error], [each for each in due if each.error]
    data: dict[str, Any] = {
        "applied": applied,
        "removed": [str(each.reference) for each in gone],
        "size": None if any(each.size is None for each in gone) else sum(each.size or 0 for each in gone),
        "kept": {str(each.reference): each.kept for each in kept},
        "failed": {str(each.reference): each.error for each in failed},
    }
    word = "removed" if applied else "would be removed; --apply removes them"
    lines = [f"  {each.reference}" for each in gone]
    lines += [f"  {each.reference} stays: {each.kept}" for each in kept]
    lines += [f"  {each.reference} was not removed: {each.error}" for each in failed]
    size = "" if data["size"] is None else f", {size_text(data['size'])}"
    out.result(data, f"{len(gone)} versions{size}, {word}", *lines)
    if failed:
        raise typer.Exit(1)
