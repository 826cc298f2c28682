"""Commands `cache pin` and `cache unpin`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import Output

HeldArg = Annotated[
    str, typer.Argument(metavar="REF", help="A delta in the cache: what it was pulled as, or the start of its digest.")
]


def pin(ref: HeldArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Protect a delta in the cache from pruning; a missing one is pulled first.

    [dim]deltahub cache pin acme/sst2-bert@champion[/dim]

    [dim]deltahub cache pin sha256:3f9a51c0ffee[/dim]
    """
    from deltahub.cache import maintenance
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference, is_digest

    hub = Hub.open()
    if is_digest(ref):  # a digest can only be looked up in the cache
        held = maintenance.find(hub.cache, ref)
        exact, digest = held.origin, held.digest
        maintenance.pin(hub.cache, digest, exact, lambda: maintenance.find(hub.cache, digest))
    else:
        pulled = hub.pull(Reference.parse(ref))
        exact, digest = str(pulled.reference), pulled.digest
        maintenance.pin(hub.cache, digest, exact, lambda: hub.pull(pulled.reference))
    data = {"reference": exact, "digest": digest, "pinned": True}
    Output(as_json=json, quiet=quiet).result(data, exact, f"{digest[:19]} stays until: deltahub cache unpin {exact}")


def unpin(ref: HeldArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Allow pruning a pinned delta from the cache again.

    [dim]deltahub cache unpin acme/sst2-bert[/dim]
    """
    from deltahub.cache import maintenance
    from deltahub.hub.hub import Hub

    cache = Hub.open().cache
    entry = maintenance.find(cache, ref)
    was = maintenance.unpin(cache, entry.digest)
    data = {"reference": entry.pinned or entry.origin, "digest": entry.digest, "pinned": False, "was_pinned": was}
    Output(as_json=json, quiet=quiet).result(
        data, entry.pinned or entry.origin, *([] if was else ["It was not pinned."])
    )
