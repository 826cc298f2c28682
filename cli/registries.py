"""registry add, list, remove and default."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import Output, print_json
from .sources import EndpointOpt, NameArg, ProfileOpt, RegionOpt, UncheckedOpt, add_checked

app = typer.Typer(
    no_args_is_help=True,
    help="Say which registries there are beside the local one: folders, and buckets of S3 servers.",
)


@app.command()
def add(
    name: NameArg,
    url: Annotated[str, typer.Argument(metavar="URL", help="A folder, or s3://bucket/prefix.")],
    endpoint: EndpointOpt = None,
    region: RegionOpt = None,
    profile: ProfileOpt = None,
    unchecked: UncheckedOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Add a registry: NAME:namespace/name is then a delta in it.

    Names without a source are looked for in the local registry first, then in the others in the order in which they were added;
    `deltahub source order` changes that. Keys are never written down: they come from the environment, or from a profile of ~/.aws.

    [dim]deltahub registry add team /mnt/team/deltas[/dim]

    [dim]deltahub registry add team s3://acme/deltas --endpoint https://s3.acme.org --profile acme[/dim]
    """
    from deltahub.configured import HUB, Configured
    from deltahub.errors import ConfigError

    entry = Configured.checked(name, url, endpoint=endpoint, region=region, profile=profile)
    if entry.kind == HUB:
        msg = f"{url} is a hub and no registry. Add it with: deltahub source add {name} {url}"
        raise ConfigError(msg)
    add_checked(entry, Output(as_json=json, quiet=quiet), unchecked=unchecked)


@app.command("list")
def list_(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """List the registries in the order in which they are searched.

    [dim]deltahub registry list[/dim]
    """
    from deltahub.configured import REGISTRY
    from deltahub.settings import Settings

    settings = Settings.read()
    known = [entry for entry in settings.sources if entry.kind == REGISTRY]
    if json:
        print_json([{**asdict(entry), "default": entry.name == settings.default} for entry in known])
        return
    rows = [
        (
            entry.name,
            "default" if entry.name == settings.default else "",
            entry.store().url,
            " ".join(f"{key}={value}" for key in ("region", "profile") if (value := getattr(entry, key))),
        )
        for entry in known
    ]
    Output(as_json=json, quiet=quiet).rows(("name", "", "where", "as"), rows)


@app.command()
def remove(name: NameArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Forget a registry; its deltas stay where they are.

    [dim]deltahub registry remove team[/dim]
    """
    from deltahub.settings import change

    registries = change(lambda known: known.remove(name))
    data = {"removed": name, "default": registries.default}
    Output(as_json=json, quiet=quiet).result(data, f"{name} is forgotten; its deltas stay where they are.")


@app.command()
def default(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The registry; without it, which one it is.")
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Choose where to push, and what to list, when no registry is named; at first that is the local one.

    [dim]deltahub registry default team[/dim]
    """
    from deltahub.settings import Settings, change

    registries = change(lambda known: known.make_default(name)) if name else Settings.read()
    Output(as_json=json, quiet=quiet).result({"default": registries.default}, registries.default)
