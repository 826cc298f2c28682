"""Commands `requests`, `approve` and `reject`: moves of protected aliases that wait for approvals."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, ReasonOpt
from .output import Output, print_json, say

NameArg = Annotated[str, typer.Argument(metavar="NAME", help="A delta: [source:]namespace/name.")]
RequestArg = Annotated[str, typer.Argument(metavar="REQUEST", help="The id of a request, e.g. r1.")]


def requests(name: NameArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """List the requested moves of protected aliases of a delta.

    [dim]deltahub requests team:acme/sst2[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    _, document = Hub.open().document(Reference.parse(name))
    if json:
        print_json([{"request": key, **request.to_dict()} for key, request in document.requests.items()])
        return
    rows = [
        (
            key,
            f"{request.alias}: {request.before or '-'} -> {request.after or '-'}",
            request.author,
            request.reason,
            ", ".join(request.approved) or "nobody",
        )
        for key, request in document.requests.items()
    ]
    if rows:
        Output(as_json=json, quiet=quiet).rows(("request", "move", "asked by", "reason", "approved by"), rows)
    elif not quiet:
        say("No move waits for an approval.", err=True)


def approve(name: NameArg, request: RequestArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Approve a requested move of a protected alias; the last approval that it needs makes the move.

    [dim]deltahub approve team:acme/sst2 r1[/dim]
    """
    from deltahub.hub import edits
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    changed = edits.approve(Hub.open(), Reference.parse(name), request)
    pending = changed.document.requests.get(request)
    exact, target = str(changed.reference), changed.target
    done = f"{exact} is {target}" if target else f"{exact} is removed"
    data = {"reference": exact, "version": target, "request": request, "moved": pending is None}
    line = f"{request} is approved; it waits for more approvals" if pending else done
    Output(as_json=json, quiet=quiet).result(data, line)


def reject(
    name: NameArg, request: RequestArg, message: ReasonOpt = "", json: JsonOpt = False, quiet: QuietOpt = False
) -> None:
    """End a request for a move of a protected alias: yours, or one that you may approve.

    [dim]deltahub reject team:acme/sst2 r1 -m "worse on short texts"[/dim]
    """
    from deltahub.hub import edits
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    changed = edits.reject(Hub.open(), Reference.parse(name), request, message)
    Output(as_json=json, quiet=quiet).result(
        {"reference": str(changed.reference), "request": request}, f"{request} is rejected; nothing was moved"
    )
