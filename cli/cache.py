"""Commands `cache list`, `show`, `prune`, `verify`, `path`, `pin` and `unpin`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import DAMAGED
from .options import JsonOpt, QuietOpt, seconds, size_in_bytes
from .output import Output, print_json, say, size_text

if TYPE_CHECKING:
    from deltahub.cache.maintenance import Cached
    from deltahub.hub.hub import Hub


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
        entry = maintenance.find(hub.cache, ref)
        exact, digest = entry.origin, entry.digest
        maintenance.pin(hub.cache, digest, exact, lambda: maintenance.find(hub.cache, digest))
    else:
        pulled = hub.pull(Reference.parse(ref))
        exact, digest = str(pulled.reference), pulled.digest
        maintenance.pin(hub.cache, digest, exact, lambda: hub.pull(pulled.reference))
    data = {"reference": exact, "digest": digest, "pinned": True}
    Output(as_json=json, quiet=quiet).result(data, exact, f"{digest.short} stays until: deltahub cache unpin {exact}")


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


app = typer.Typer(no_args_is_help=True, help="Manage the deltas pulled to this machine.")


def _time(seconds_since_1970: float) -> str:
    return datetime.fromtimestamp(seconds_since_1970, UTC).strftime("%Y-%m-%dT%H:%MZ")


def _facts(entry: Cached) -> dict[str, Any]:
    return {
        "reference": entry.origin,
        "digest": entry.digest,
        "origin": entry.origin,
        "size": entry.size,
        "used": _time(entry.used),
        "pinned": entry.pinned,
        "folder": str(entry.folder),
    }


@app.command("list")
def list_(
    hf: Annotated[bool, typer.Option("--hf", help="List Hugging Face's own cache instead; it is only read.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """List the deltas in the cache, with the references they were pulled as.

    [dim]deltahub cache list[/dim]

    [dim]deltahub cache list --hf[/dim]
    """
    if hf:
        _list_hf(as_json=json, quiet=quiet)
        return
    from deltahub.cache import maintenance
    from deltahub.hub.hub import Hub

    entries = list(maintenance.entries(Hub.open().cache))
    if json:
        print_json([_facts(entry) for entry in entries])
        return
    out = Output(as_json=json, quiet=quiet)
    if not entries:
        out.nothing("The cache is empty.")
        return
    rows = [(e.digest.short, e.origin, size_text(e.size), _time(e.used), "pinned" if e.pinned else "") for e in entries]
    out.rows(("digest", "pulled as", "size", "last used", ""), rows)
    total = size_text(sum(entry.size for entry in entries))
    many = "1 delta" if len(entries) == 1 else f"{len(entries):,} deltas"
    out.nothing(f"{many}, {total}. Hugging Face's own cache is apart: deltahub cache list --hf")


def _list_hf(*, as_json: bool, quiet: bool) -> None:
    from deltahub.cache.huggingface import repositories

    repos, warnings = repositories()
    out = Output(as_json=as_json, quiet=quiet)
    out.nothing(*warnings) if warnings else None
    if as_json:
        print_json(
            [
                {
                    "name": repo.name,
                    "kind": repo.kind,
                    "revisions": repo.revisions,
                    "size": repo.size,
                    "used": _time(repo.used),
                    "folder": str(repo.folder),
                }
                for repo in repos
            ]
        )
    elif repos:
        rows = [(r.name, r.kind, str(r.revisions), size_text(r.size), _time(r.used)) for r in repos]
        out.rows(("repository", "kind", "commits", "size", "last used"), rows)
        out.nothing("Remove what is not needed with Hugging Face's own command: hf cache rm")
    else:
        out.nothing("Hugging Face's cache is empty.")


@app.command()
def show(ref: HeldArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Show one delta in the cache and verify every byte.

    [dim]deltahub cache show acme/sst2-bert[/dim]

    [dim]deltahub cache show sha256:3f9a51c0ffee[/dim]
    """
    from dataclasses import asdict

    from deltahub.cache import maintenance
    from deltahub.hub.hub import Hub

    cache = Hub.open().cache
    entry = maintenance.find(cache, ref)
    damage, manifest = cache.damage(entry.digest), cache.manifest(entry.digest)
    files = [asdict(file) for file in manifest.files] if manifest else []
    if json:
        print_json({**_facts(entry), "damage": damage, "files": files})
        return
    out = Output(as_json=json, quiet=quiet)
    facts = [
        ("digest", entry.digest),
        ("pulled as", entry.origin),
        ("pinned as", entry.pinned or "not pinned"),
        ("size", size_text(entry.size)),
        ("last used", _time(entry.used)),
        ("folder", str(entry.folder)),
        ("state", f"damaged: {damage}" if damage else "whole"),
    ]
    out.rows(("", ""), facts, key=None)
    if files:
        out.rows(("file", "size", "sha256"), [(f["path"], size_text(f["size"]), f["sha256"]) for f in files], key=None)


@app.command()
def prune(
    older: Annotated[
        str | None,
        typer.Option(
            "--older",
            metavar="AGE",
            help="Minimum time since the last use: 12h, 30d, 4w. [default: 30d, or no age with --max]",
        ),
    ] = None,
    most: Annotated[
        str | None,
        typer.Option(
            "--max",
            metavar="SIZE",
            help="Maximum size of the cache, such as 10GB; the least recently used deltas are removed.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Remove deltas not used for some time; they can be pulled again. Pinned deltas are kept.

    [dim]deltahub cache prune --older 30d[/dim]

    [dim]deltahub cache prune --max 10GB --dry-run[/dim]
    """
    from deltahub.cache import maintenance
    from deltahub.hub.hub import Hub

    age = older if older is not None or most is not None else "30d"
    removed = maintenance.prune(
        Hub.open().cache,
        older=None if age is None else seconds(age, "--older"),
        most=None if most is None else size_in_bytes(most, "--max"),
        dry_run=dry_run,
    )
    freed = sum(entry.size for entry in removed)
    out = Output(as_json=json, quiet=quiet)
    data = {"removed": [entry.digest for entry in removed], "freed": freed, "dry_run": dry_run}
    verb = "would be removed" if dry_run else "removed"
    out.result(
        data,
        f"{len(removed)} {verb}, {size_text(freed)} freed.",
        *(f"{entry.digest.short}  {entry.origin}, last used {_time(entry.used)}" for entry in removed if dry_run),
    )


@app.command()
def verify(
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="One delta in the cache; all without it.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch what is damaged again, now.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Verify every byte in the cache; damaged deltas are fetched again with --repair, or on their next use.

    [dim]deltahub cache verify[/dim]

    [dim]deltahub cache verify --repair[/dim]
    """
    from deltahub.cache import maintenance
    from deltahub.hub.hub import Hub

    hub = Hub.open()
    entries = [maintenance.find(hub.cache, ref)] if ref else list(maintenance.entries(hub.cache))
    results = [(entry, hub.cache.damage(entry.digest)) for entry in entries]
    damaged = [(entry, damage) for entry, damage in results if damage]
    out = Output(as_json=json, quiet=quiet)
    failures = {entry.digest: _repair(hub, entry) for entry, _ in damaged} if repair else {}
    unrepaired = [entry for entry, _ in damaged if failures.get(entry.digest, "") is not None]
    if json:
        print_json(
            [
                {
                    "digest": e.digest,
                    "damage": damage,
                    "repaired": bool(damage) and e not in unrepaired,
                    "why_not": failures.get(e.digest),
                }
                for e, damage in results
            ]
        )
    elif damaged:
        rows = [(e.digest, damage, "" if not repair else failures[e.digest] or "repaired") for e, damage in damaged]
        out.rows(("damaged", "what", "repair") if repair else ("damaged", "what", ""), rows, wrap=True)
    else:
        say(f"{len(results)} checked, all intact.")
    if unrepaired:
        raise typer.Exit(DAMAGED)


def _repair(hub: Hub, entry: Cached) -> str | None:
    """Pull a delta again from its source; return the reason if that did not help, else None."""
    from deltahub.errors import DeltaHubError
    from deltahub.reference import Reference

    try:
        pulled = hub.pull(Reference.parse(entry.origin), force=True)
    except DeltaHubError as error:
        return str(error)
    return None if pulled.digest == entry.digest else f"{entry.origin} is {pulled.digest} now"


app.command()(pin)
app.command()(unpin)


@app.command()
def path(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Print the folder of the cache, which DELTAHUB_CACHE sets.

    [dim]deltahub cache path[/dim]
    """
    from deltahub.settings.environment import cache_home

    Output(as_json=json, quiet=quiet).result({"path": str(cache_home())}, str(cache_home()))
