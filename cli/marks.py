"""tag and alias."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, RefArg
from .output import Output


def tag(
    ref: RefArg,
    tags: Annotated[
        list[str], typer.Argument(metavar="TAG...", help="Labels or key=value to add; with '-' at the end, to remove.")
    ],
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Add or remove tags of a version, by default the newest.

    [dim]deltahub tag DeltaHub/sst2-t5-base task=sst2 lang=en[/dim]

    [dim]deltahub tag DeltaHub/sst2-t5-base@v2 draft-[/dim]
    """
    from deltahub.hub import Hub
    from deltahub.reference import Reference, check_tag

    reference = Reference.parse(ref)
    add = [check_tag(text) for text in tags if not text.endswith("-")]
    remove = [check_tag(text[:-1]) for text in tags if text.endswith("-")]
    registry, found = Hub.open().resolve(reference)
    entry = registry.set_tags(reference.path, found.version, add, remove)
    exact = f"{registry.name}:{reference.path}@{found.version}"
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "tags": entry.tags}, f"{exact}: {' '.join(entry.tags) or 'no tags'}")


def alias(
    ref: RefArg,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="A movable name, e.g. champion.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Point an alias to a version; every move is kept in the log.

    [dim]deltahub alias DeltaHub/sst2-t5-base@v3 champion[/dim]
    """
    from deltahub.hub import Hub
    from deltahub.reference import Reference, check_alias

    reference = Reference.parse(ref)
    registry, found = Hub.open().resolve(reference)
    document = registry.set_alias(reference.path, check_alias(name), None if remove else found.version)
    target = document.aliases.get(name)
    exact = f"{registry.name}:{reference.path}@{name}"
    line = f"{exact} is {target}" if target else f"{exact} is removed"
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "version": target, "aliases": dict(document.aliases)}, line)
