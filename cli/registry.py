"""Commands `registry add`, `trust`, `list`, `remove` and `default`."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import Output, print_json, say
from .sign import RequireOpt, TrustOpt, trusted

if TYPE_CHECKING:
    from deltahub.settings.source_entry import SourceEntry
    from deltahub.settings.user import Settings
from .source import EndpointOpt, NameArg, OptionOpt, ProfileOpt, RegionOpt, UncheckedOpt, add_checked, forget

app = typer.Typer(
    no_args_is_help=True,
    help="Configure registries beside the local one: folders, and buckets of S3, Google Cloud Storage and Azure.",
)


@app.command()
def add(
    name: NameArg,
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix."
        ),
    ],
    endpoint: EndpointOpt = None,
    region: RegionOpt = None,
    profile: ProfileOpt = None,
    option: OptionOpt = None,
    unchecked: UncheckedOpt = False,
    require: RequireOpt = False,
    trust: TrustOpt = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Add a registry: NAME:namespace/name is then a delta in it.

    Names without a source are looked up in the local registry first, then in the others in the order they were added;
    `deltahub source order` changes that. Keys are never stored: they come from the environment, or from a profile of ~/.aws.

    [dim]deltahub registry add team /mnt/team/deltas[/dim]

    [dim]deltahub registry add team /mnt/team/deltas --require-signature --trust release.pub[/dim]

    [dim]deltahub registry add team s3://acme/deltas --endpoint https://s3.acme.org --profile acme[/dim]

    [dim]deltahub registry add team az://deltas/acme --option account_name=acmestorage[/dim]
    """
    from deltahub.errors import ConfigError
    from deltahub.settings.source_entry import HUB, SourceEntry

    if require != bool(trust):
        raise typer.BadParameter(
            "--require-signature and --trust KEY.pub belong together: one requires signatures, the other names the trusted keys."
        )
    entry = SourceEntry.checked(name, url, endpoint=endpoint, region=region, profile=profile, options=option or ())
    entry = replace(entry, trust=trusted(require, trust))
    if entry.kind == HUB:
        msg = f"{url} is a hub, not a registry. Add it with: deltahub source add {name} {url}"
        raise ConfigError(msg)
    add_checked(entry, Output(as_json=json, quiet=quiet), unchecked=unchecked)


@app.command()
def trust(
    name: NameArg,
    keys: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[KEY.pub]...", help="Public keys in PEM, in place of those trusted so far."),
    ] = None,
    no_trust: Annotated[bool, typer.Option("--no-trust", help="Accept unsigned deltas.")] = False,
    ask_for_none: Annotated[bool, typer.Option("--ask-for-none", hidden=True)] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Set the keys, one of which must have signed a registry's delta to pull or load it; without keys, show them.

    [dim]deltahub registry trust team release.pub backup.pub[/dim]

    [dim]deltahub registry trust team --no-trust[/dim]
    """
    from deltahub.settings.user import Settings, change
    from deltahub.signing import PublicKey

    if ask_for_none:
        warnings.warn("--ask-for-none is now --no-trust.", DeprecationWarning, stacklevel=2)
        say("--ask-for-none is now --no-trust.", err=True)
        no_trust = True
    if no_trust and keys:
        raise typer.BadParameter("--no-trust takes no keys. Leave out one of the two.")
    pems = trusted(False, keys)

    def changed(settings: Settings) -> Settings:
        entry = _added(settings, name)
        return replace(settings, added={**settings.added, name: replace(entry, trust=pems)})

    settings = change(changed) if keys or no_trust else Settings.read()
    entry: SourceEntry = _added(settings, name)
    ids = [PublicKey.parse(pem.encode(), "The settings").id for pem in entry.trust]
    line = (
        f"{name} requires a signature by {' or '.join(key_id[:16] for key_id in ids)}"
        if ids
        else f"{name} requires no signature"
    )
    Output(as_json=json, quiet=quiet).result({"name": name, "keys": ids, "require_signature": bool(ids)}, line)


def _added(settings: Settings, name: str) -> SourceEntry:
    """Return a registry added by the user."""
    settings.require(name)
    if name not in settings.added or settings.added[name].kind != "registry":
        raise typer.BadParameter(f"{name} is not a registry that was added, and only those can require signatures.")
    return settings.added[name]


@app.command("list")
def list_(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """List the registries in search order.

    [dim]deltahub registry list[/dim]
    """
    from deltahub.settings.source_entry import REGISTRY
    from deltahub.settings.user import Settings

    settings = Settings.read()
    entries = [entry for entry in settings.sources if entry.kind == REGISTRY]
    if json:
        print_json([{**asdict(entry), "default": entry.name == settings.default} for entry in entries])
        return
    rows = [
        (
            entry.name,
            "default" if entry.name == settings.default else "",
            entry.store().url,
            " ".join(f"{key}={value}" for key in ("region", "profile") if (value := getattr(entry, key))),
        )
        for entry in entries
    ]
    Output(as_json=json, quiet=quiet).rows(("name", "", "where", "as"), rows)


@app.command()
def remove(name: NameArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Remove a registry from the settings; its deltas are kept.

    [dim]deltahub registry remove team[/dim]
    """
    forget(name, Output(as_json=json, quiet=quiet))


@app.command()
def default(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The registry; without it, which one it is.")
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Set the registry for pushes and lists when none is named; initially it is the local one.

    [dim]deltahub registry default team[/dim]
    """
    from deltahub.settings.user import Settings, change

    registries = change(lambda settings: settings.make_default(name)) if name else Settings.read()
    Output(as_json=json, quiet=quiet).result({"default": registries.default}, registries.default)
