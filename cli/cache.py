"""cache list, prune, verify and path."""

from __future__ import annotations

from typing import Annotated

import typer

from .errors import DAMAGED
from .options import JsonOpt, QuietOpt, seconds
from .output import Output, print_json, size_text

app = typer.Typer(no_args_is_help=True, help="Look after the deltas that were pulled to this machine.")


@app.command("list")
def list_(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """List what is in the cache.

    [dim]deltahub cache list[/dim]
    """
    from datetime import UTC, datetime

    from deltahub.hub import Hub

    entries = list(Hub.open().cache.entries())
    used = {entry.digest: datetime.fromtimestamp(entry.used, UTC).strftime("%Y-%m-%dT%H:%MZ") for entry in entries}
    if json:
        print_json(
            [
                {
                    "digest": e.digest,
                    "origin": e.origin,
                    "size": e.size,
                    "used": used[e.digest],
                    "folder": str(e.folder),
                }
                for e in entries
            ]
        )
        return
    out = Output(as_json=json, quiet=quiet)
    if not entries:
        out.nothing("The cache is empty.")
        return
    rows = [(e.digest[:19], e.origin, size_text(e.size), used[e.digest]) for e in entries]
    out.rows(("digest", "pulled as", "size", "last used"), rows)


@app.command()
def prune(
    older: Annotated[str, typer.Option("--older", metavar="AGE", help="Not used for so long: 12h, 30d, 4w.")] = "30d",
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Remove deltas that were not used for some time; they can be pulled again.

    [dim]deltahub cache prune --older 30d[/dim]
    """
    from deltahub.hub import Hub

    removed = Hub.open().cache.prune(seconds(older, "--older"))
    freed = sum(entry.size for entry in removed)
    out = Output(as_json=json, quiet=quiet)
    data = {"removed": [entry.digest for entry in removed], "freed": freed}
    out.result(data, f"{len(removed)} removed, {size_text(freed)} freed.")


@app.command()
def verify(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Read every byte in the cache again; what is damaged is fetched anew when it is next used.

    [dim]deltahub cache verify[/dim]
    """
    from deltahub.hub import Hub

    cache = Hub.open().cache
    results = {entry.digest: cache.damage(entry.digest) for entry in cache.entries()}
    damaged = [(digest, damage) for digest, damage in results.items() if damage]
    if json:
        print_json([{"digest": digest, "damage": damage} for digest, damage in results.items()])
    elif damaged:
        Output(as_json=json, quiet=quiet).rows(("damaged", "what"), damaged)
    else:
        print(f"{len(results)} checked, all intact.")  # noqa: T201
    if damaged:
        raise typer.Exit(DAMAGED)


@app.command()
def path(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Print the folder of the cache; DELTAHUB_CACHE moves it.

    [dim]deltahub cache path[/dim]
    """
    from deltahub.places import cache_home

    Output(as_json=json, quiet=quiet).result({"path": str(cache_home())}, str(cache_home()))
