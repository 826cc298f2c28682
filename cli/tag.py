"""Commands `tag`, `alias` and `undo`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import ExpectOpt, JsonOpt, QuietOpt, RefArg, expected
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
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference, check_tag
    from deltahub.registry.edits import set_tags

    reference = Reference.parse(ref)
    add = [check_tag(text) for text in tags if not text.endswith("-")]
    remove = [check_tag(text[:-1]) for text in tags if text.endswith("-")]
    registry, document = Hub.open().held(reference)
    version = document.resolve(reference.version)
    entry = set_tags(registry, document.name, version, add, remove)
    exact = f"{registry.name}:{document.name}@{version}"
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "tags": entry.tags}, f"{exact}: {' '.join(entry.tags) or 'no tags'}")


def alias(
    ref: RefArg,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="A movable name, e.g. champion.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    expect: ExpectOpt = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Point an alias to a version, by default the newest; every move is kept in the log.

    With --remove and a version, the alias is removed only if it points there. On a concurrent move by another user,
    nothing is changed and the exit code is 4.

    [dim]deltahub alias DeltaHub/sst2-t5-base@v3 champion[/dim]

    [dim]deltahub alias DeltaHub/sst2-t5-base@v3 champion --expect v2[/dim]
    """
    from deltahub.errors import ConflictError
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference, check_alias
    from deltahub.registry.edits import set_alias

    reference = Reference.parse(ref)
    check_alias(name)
    registry, document = Hub.open().held(reference)
    version = document.resolve(reference.version)
    current_target = document.aliases.get(name)
    if remove and reference.version and current_target and current_target != version:
        raise ConflictError(f"The alias {document.name}@{name}", version, current_target)
    expected_target = current_target if expect is None else expected(expect)
    document = set_alias(registry, document.name, name, None if remove else version, expect=expected_target)
    target = document.aliases.get(name)
    exact = f"{registry.name}:{document.name}@{name}"
    line = f"{exact} is {target}" if target else f"{exact} is removed"
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "version": target, "aliases": dict(document.aliases)}, line)


def undo(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A delta: [source:]namespace/name.")],
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Undo the last move of an alias; run it again to undo the one before. The log keeps every move.

    [dim]deltahub undo DeltaHub/sst2-t5-base[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.edits import undo as take_back

    registry, document = Hub.open().held(Reference.parse(name))
    document, move = take_back(registry, document.name)
    exact = f"{registry.name}:{document.name}@{move.what}"
    line = f"{exact} is {move.before} again" if move.before else f"{exact} is removed"
    out = Output(as_json=json, quiet=quiet)
    data = {"reference": exact, "version": move.before, "undone": {"time": move.time, "author": move.author}}
    out.result(
        data, line, f"Taken back: {move.before or 'nothing'} -> {move.after or 'nothing'}, {move.time} by {move.author}"
    )
