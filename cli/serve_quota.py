"""Commands `serve quota set`, `list` and `remove`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, size_in_bytes
from .output import Output, print_json, size_text
from .serve_token import RegistryOpt

app = typer.Typer(no_args_is_help=True, help="Manage the most bytes and deltas that namespaces may hold in a hub.")
NamespaceArg = Annotated[str, typer.Argument(metavar="NAMESPACE", help="The namespace.")]


@app.command("set")
def set_(
    namespace: NamespaceArg,
    most_bytes: Annotated[
        str | None, typer.Option("--bytes", metavar="SIZE", help="The most bytes of all its versions: 50GB, 500MB.")
    ] = None,
    most_deltas: Annotated[int | None, typer.Option("--deltas", min=0, help="The most deltas.")] = None,
    registry: RegistryOpt = "local",
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Set the quota of a namespace; it holds for pushes through every hub of this registry.

    [dim]deltahub serve quota set acme --bytes 50GB --deltas 1000[/dim]
    """
    if most_bytes is None and most_deltas is None:
        raise typer.BadParameter("A quota needs --bytes, --deltas or both.")
    from deltahub.server.quotas import Quotas
    from deltahub.server.served_registry import open_registry

    size = size_in_bytes(most_bytes, "--bytes") if most_bytes else None
    quota = Quotas(open_registry(registry)).set(namespace, size, most_deltas)
    Output(as_json=json, quiet=quiet).result(
        quota.to_dict(), f"{namespace} may hold {_limit(quota.most_bytes, quota.most_deltas)}"
    )


@app.command("list")
def list_(registry: RegistryOpt = "local", json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """List the quotas, and what is used, counted anew.

    [dim]deltahub serve quota list[/dim]
    """
    from deltahub.server.quotas import Quotas
    from deltahub.server.served_registry import open_registry

    quotas = Quotas(open_registry(registry)).all()
    if json:
        print_json([quota.to_dict() for quota in quotas])
        return
    out = Output(as_json=json, quiet=quiet)
    if not quotas:
        out.nothing("No namespace has a quota.", "Set one with: deltahub serve quota set NAMESPACE --bytes 50GB")
        return
    rows = [
        (
            quota.namespace,
            size_text(quota.taken.bytes),
            "" if quota.most_bytes is None else size_text(quota.most_bytes),
            f"{quota.taken.deltas:,}",
            "" if quota.most_deltas is None else f"{quota.most_deltas:,}",
        )
        for quota in quotas
    ]
    out.rows(("namespace", "size", "most", "deltas", "most deltas"), rows)


@app.command()
def remove(
    namespace: NamespaceArg, registry: RegistryOpt = "local", json: JsonOpt = False, quiet: QuietOpt = False
) -> None:
    """Remove the quota of a namespace, which then may hold any number.

    [dim]deltahub serve quota remove acme[/dim]
    """
    from deltahub.server.quotas import Quotas
    from deltahub.server.served_registry import open_registry

    Quotas(open_registry(registry)).remove(namespace)
    Output(as_json=json, quiet=quiet).result({"namespace": namespace}, f"{namespace} has no quota any more")


def _limit(most_bytes: int | None, most_deltas: int | None) -> str:
    limits = [size_text(most_bytes)] if most_bytes is not None else []
    limits += [f"{most_deltas:,} deltas"] if most_deltas is not None else []
    return " and ".join(limits)
