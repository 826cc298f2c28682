"""Commands `source list`, `add`, `remove`, `order`, `enable` and `disable`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonOpt, QuietOpt, split_tags
from .output import Output, print_json

if TYPE_CHECKING:
    from deltahub.settings.source_entry import SourceEntry

app = typer.Typer(
    no_args_is_help=True,
    help="Configure sources of deltas and their order: registries, and hubs that speak the Hugging Face protocol.",
)

NameArg = Annotated[str, typer.Argument(metavar="NAME", help="Name of the source in references.")]
EndpointOpt = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="URL", help="The server of a bucket, if it is not the service's own."),
]
RegionOpt = Annotated[str | None, typer.Option("--region", help="The region of a bucket in S3.")]
ProfileOpt = Annotated[
    str | None, typer.Option("--profile", help="The profile of ~/.aws that has the keys; else the environment has.")
]
OptionOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="A setting of a bucket's client, such as sse_kms_key_id=KEY or account_name=NAME; may be repeated.",
    ),
]
UncheckedOpt = Annotated[bool, typer.Option("--unchecked", help="Add it without checking that it can be read.")]
NamespacesOpt = Annotated[
    list[str] | None,
    typer.Option("--namespaces", metavar="NAMESPACE", help="Look for these here only; may be repeated, takes commas."),
]


@app.command("list")
def list_(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """List all sources in the search order for names without a source.

    [dim]deltahub source list[/dim]
    """
    from deltahub.settings.user import Settings

    settings = Settings.read()
    entries = settings.sources
    if json:
        print_json(
            [
                {
                    **entry.to_document(),
                    "kind": entry.kind,
                    "default": entry.name == settings.default,
                    "enabled": entry.name not in settings.disabled,
                    "namespaces": list(entry.namespaces),
                }
                for entry in entries
            ]
        )
        return
    rows = [
        (
            entry.name,
            entry.kind,
            entry.place,
            "off" if entry.name in settings.disabled else "default" if entry.name == settings.default else "",
            " ".join(entry.namespaces),
        )
        for entry in entries
    ]
    Output(as_json=json, quiet=quiet).rows(("name", "kind", "where", "", "only place of"), rows)


@app.command()
def add(
    name: NameArg,
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A registry's folder or bucket (s3://, gs://, az://), or a hub's https:// address."
        ),
    ],
    endpoint: EndpointOpt = None,
    region: RegionOpt = None,
    profile: ProfileOpt = None,
    option: OptionOpt = None,
    token_env: Annotated[
        str | None,
        typer.Option(
            "--token-env",
            metavar="VARIABLE",
            help="The environment variable that holds a hub's token. [default: DELTAHUB_TOKEN_NAME]",
        ),
    ] = None,
    namespaces: NamespacesOpt = None,
    unchecked: UncheckedOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Add a source: NAME:namespace/name is then a delta in it.

    A name without a source is looked up in the sources in their order, and the first match is used. Namespaces bound to a source are
    not looked up in any other, so that others cannot register a free name there. Keys and tokens are never stored.

    [dim]deltahub source add team s3://acme/deltas --namespaces acme,acme-lab[/dim]

    [dim]deltahub source add hub https://hub.acme.org --token-env ACME_TOKEN[/dim]
    """
    from deltahub.settings.source_entry import SourceEntry

    entry = SourceEntry.checked(
        name,
        url,
        namespaces=split_tags(namespaces),
        options=option or (),
        endpoint=endpoint,
        region=region,
        profile=profile,
        token_env=token_env,
    )
    add_checked(entry, Output(as_json=json, quiet=quiet), unchecked=unchecked)


def add_checked(entry: SourceEntry, out: Output, *, unchecked: bool) -> None:
    """Add a source after checking that it can be read."""
    from dataclasses import asdict

    from deltahub.settings.user import change

    count = None if unchecked else _count(entry)
    settings = change(lambda old_settings: old_settings.add(entry))
    many = "no delta yet" if not count else "one delta" if count == 1 else f"{count:,} deltas"
    holds = "" if count is None else f", which holds {many}"
    if not count and entry.missing:
        holds = ", which does not exist yet; the first push makes it. Check the path if deltas should be there"
    out.result(
        {**asdict(entry), "deltas": count},
        f"{entry.name} is {entry.place}{holds}",
        f"Push to it with: deltahub push ./ckpt --to {entry.name}",
        f"Searched in this order: {', '.join(settings.names)}",
    )


def _count(entry: SourceEntry) -> int:
    """Count the deltas of a source."""
    from deltahub.registry.registry import Registry
    from deltahub.settings.source_entry import HUB

    if entry.kind != HUB:
        return len(Registry(entry.store(), entry.name).names())
    from pathlib import Path

    from deltahub.registry.search.conditions import Search
    from deltahub.sources.catalog import open_source

    return open_source(entry, Path(), lambda _: None).search(Search(limit=1))[1]


@app.command()
def remove(name: NameArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Remove a source from the settings; its deltas are kept.

    [dim]deltahub source remove team[/dim]
    """
    forget(name, Output(as_json=json, quiet=quiet))


def forget(name: str, out: Output) -> None:
    """Remove a source from the settings."""
    from deltahub.settings.user import change

    settings = change(lambda old_settings: old_settings.remove(name))
    data = {"removed": name, "default": settings.default}
    out.result(data, f"{name} is forgotten; its deltas stay where they are.")


@app.command()
def order(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Sources, the first to be searched first.")],
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Set the search order of sources; sources not named follow in their current order.

    A public source, where anyone can register a name, such as the Hugging Face Hub, always comes after all others.

    [dim]deltahub source order team local[/dim]
    """
    from deltahub.settings.user import change

    settings = change(lambda old_settings: old_settings.reorder(tuple(names)))
    Output(as_json=json, quiet=quiet).result({"order": list(settings.names)}, "\n".join(settings.names))


@app.command()
def disable(name: NameArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Disable a source: it is not searched and cannot be named, until it is enabled again.

    [dim]deltahub source disable hf[/dim]
    """
    from deltahub.settings.user import change

    change(lambda settings: settings.disable(name))
    Output(as_json=json, quiet=quiet).result({"name": name, "enabled": False}, f"{name} is off.")


@app.command()
def enable(name: NameArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Enable a source again.

    [dim]deltahub source enable hf[/dim]
    """
    from deltahub.settings.user import change

    change(lambda settings: settings.enable(name))
    Output(as_json=json, quiet=quiet).result({"name": name, "enabled": True}, f"{name} is on.")
