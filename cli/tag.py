"""Commands `tag`, `alias` and `undo`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import ExpectOpt, JsonOpt, QuietOpt, ReasonOpt, RefArg, expected
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
    from deltahub.hub.edits import set_tags
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference, check_tag

    reference = Reference.parse(ref)
    add = [check_tag(text) for text in tags if not text.endswith("-")]
    remove = [check_tag(text[:-1]) for text in tags if text.endswith("-")]
    changed = set_tags(Hub.open(), reference, add, remove)
    exact, entry = str(changed.reference), changed.document.versions[changed.reference.version or ""]
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "tags": entry.tags}, f"{exact}: {' '.join(entry.tags) or 'no tags'}")


def alias(
    ref: RefArg,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="A movable name, e.g. champion.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    expect: ExpectOpt = None,
    ask: Annotated[bool, typer.Option("--ask", help="Ask others to approve the move of a protected alias.")] = False,
    message: ReasonOpt = "",
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Point an alias to a version, by default the newest; every move is kept in the log.

    With --remove and a version, the alias is removed only if it points there. On a concurrent move by another user,
    nothing is changed and the exit code is 4.

    [dim]deltahub alias DeltaHub/sst2-t5-base@v3 champion[/dim]

    [dim]deltahub alias DeltaHub/sst2-t5-base@v3 champion --expect v2[/dim]

    [dim]deltahub alias team:acme/sst2@v3 champion --ask -m "better on short texts"[/dim]
    """
    if ask:
        if expect is not None:
            raise typer.BadParameter("a request is for a move from where the alias points now; leave out --expect")
        _ask(Output(as_json=json, quiet=quiet), ref, name, message, remove=remove)
        return
    from deltahub.hub.edits import set_alias
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.edits import ANYTHING

    known = ANYTHING if expect is None else expected(expect)
    changed = set_alias(Hub.open(), Reference.parse(ref), name, remove=remove, expect=known, reason=message)
    exact, target = str(changed.reference), changed.target
    line = f"{exact} is {target}" if target else f"{exact} is removed"
    out = Output(as_json=json, quiet=quiet)
    out.result({"reference": exact, "version": target, "aliases": dict(changed.document.aliases)}, line)


def _ask(out: Output, ref: str, name: str, reason: str, *, remove: bool) -> None:
    """Ask others to approve a move, and print the id of the request."""
    from deltahub.hub.edits import ask
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    changed, request = ask(Hub.open(), Reference.parse(ref), name, reason, remove=remove)
    asked, delta = changed.document.requests[request], changed.reference.at(None)
    line = f"{request} asks to move {changed.reference} from {asked.before or 'nothing'} to {asked.after or 'nothing'}"
    out.result({"request": request, **asked.to_dict()}, line, f"To approve it: deltahub approve {delta} {request}")


def undo(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A delta: [source:]namespace/name.")],
    alias: Annotated[
        str | None, typer.Argument(metavar="[ALIAS]", help="The alias to take back; by default the last one moved.")
    ] = None,
    message: ReasonOpt = "",
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Undo the last move of an alias; run it again to undo the one before. The log keeps every move.

    [dim]deltahub undo DeltaHub/sst2-t5-base[/dim]

    [dim]deltahub undo team:acme/sst2 champion -m "worse on short texts"[/dim]
    """
    from deltahub.hub.edits import undo as take_back
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    changed = take_back(Hub.open(), Reference.parse(name), alias, reason=message)
    exact, move = str(changed.reference), changed.undone
    assert move is not None
    line = f"{exact} is {move.before} again" if move.before else f"{exact} is removed"
    out = Output(as_json=json, quiet=quiet)
    data = {"reference": exact, "version": move.before, "undone": {"time": move.time, "author": move.author}}
    out.result(
        data, line, f"Taken back: {move.before or 'nothing'} -> {move.after or 'nothing'}, {move.time} by {move.author}"
    )
