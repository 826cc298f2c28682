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
    registry, document = Hub.open().document(reference)
    version = document.resolve(reference.version)
    entry = registry.set_tags(reference.path, version, add, remove)
    exact = f"{registry.name}:{reference.path}@{version}"
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "tags": entry.tags}, f"{exact}: {' '.join(entry.tags) or 'no tags'}")


def alias(
    ref: RefArg,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="A movable name, e.g. champion.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Point an alias to a version, by default the newest; every move is kept in the log.

    With --remove and a version, the alias is removed only if it points there.

    [dim]deltahub alias DeltaHub/sst2-t5-base@v3 champion[/dim]
    """
    from deltahub.errors import ConflictError
    from deltahub.hub import Hub
    from deltahub.reference import Reference, check_alias

    reference = Reference.parse(ref)
    check_alias(name)
    registry, document = Hub.open().document(reference)
    version = document.resolve(reference.version)
    pointed = document.aliases.get(name)
    if remove and reference.version and pointed and pointed != version:
        raise ConflictError(f"The alias {reference.path}@{name}", version, pointed)
    document = registry.set_alias(reference.path, name, None if remove else version)
    target = document.aliases.get(name)
    exact = f"{registry.name}:{reference.path}@{name}"
    line = f"{exact} is {target}" if target else f"{exact} is removed"
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "version": target, "aliases": dict(document.aliases)}, line)
