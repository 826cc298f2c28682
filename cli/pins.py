"""cache pin and unpin."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, RefArg
from .output import Output

HeldArg = Annotated[
    str, typer.Argument(metavar="REF", help="A delta in the cache: what it was pulled as, or the start of its digest.")
]


def pin(ref: RefArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Keep a delta in the cache whatever is pruned; it is pulled if it is not there.

    [dim]deltahub cache pin acme/sst2-bert@champion[/dim]
    """
    from deltahub.cache import caretaking
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    hub = Hub.open()
    pulled = hub.pull(Reference.parse(ref))
    exact = pulled.reference
    caretaking.pin(hub.cache, pulled.digest, str(exact), lambda: hub.pull(exact))
    data = {"reference": str(exact), "digest": pulled.digest, "pinned": True}
    Output(as_json=json, quiet=quiet).result(
        data, str(exact), f"{pulled.digest[:19]} stays until: deltahub cache unpin {exact}"
    )


def unpin(ref: HeldArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Let a delta go with the others again when the cache is pruned.

    [dim]deltahub cache unpin acme/sst2-bert[/dim]
    """
    from deltahub.cache import caretaking
    from deltahub.hub.hub import Hub

    cache = Hub.open().cache
    entry = caretaking.find(cache, ref)
    was = caretaking.unpin(cache, entry.digest)
    data = {"reference": entry.pinned or entry.origin, "digest": entry.digest, "pinned": False, "was_pinned": was}
    Output(as_json=json, quiet=quiet).result(
        data, entry.pinned or entry.origin, *([] if was else ["It was not pinned."])
    )
