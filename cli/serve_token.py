"""Commands `serve token create`, `list` and `revoke`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, seconds
from .output import Output, print_json

app = typer.Typer(
    no_args_is_help=True,
    help="Manage the tokens for reading from and writing to a hub, stored as hashes in its registry.",
)

RegistryOpt = Annotated[
    str,
    typer.Option(
        "--registry", metavar="NAME|URL", help="The registry that is served: a source, a folder, or s3://bucket/prefix."
    ),
]


@app.command()
def create(
    name: Annotated[
        str, typer.Option("--name", help="User or machine of the token, shown in logs and as the author of pushes.")
    ],
    scope: Annotated[str, typer.Option("--scope", help="read, write, or admin: everything everywhere.")] = "read",
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", metavar="NS", help="Where it may be used; may be repeated; by default everywhere."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="AGE", help="For how long: 12h, 30d, 52w.")
    ] = None,
    registry: RegistryOpt = "local",
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Create a token and print its secret, which is shown only once.

    [dim]deltahub serve token create --name ci --scope write --namespace acme --expires 30d[/dim]

    [dim]export HF_TOKEN=$(deltahub serve token create --name ada --scope write --quiet)[/dim]
    """
    from datetime import timedelta

    from deltahub.server.access import SCOPES
    from deltahub.server.served_registry import open_registry
    from deltahub.server.tokens import Tokens

    chosen_scope = next((known_scope for known_scope in SCOPES[1:] if known_scope == scope), None)
    if chosen_scope is None:
        msg = f"expected read, write or admin; got {scope!r}"
        raise typer.BadParameter(msg, param_hint="--scope")
    lifetime = timedelta(seconds=seconds(expires, "--expires")) if expires else None
    token, secret = Tokens(open_registry(registry).store).create(name, chosen_scope, namespace or (), lifetime)
    namespaces_text = "everywhere" if token.namespaces is None else f"in {', '.join(token.namespaces)}"
    until = f", until {token.expires}" if token.expires else ""
    data = {"secret": secret, "id": token.id, "name": name, "scope": scope, "namespaces": token.namespaces}
    Output(as_json=json, quiet=quiet).result(
        {**data, "expires": token.expires},
        secret,
        f"{name} may {_MAY[scope]} {namespaces_text}{until}. This is the only time that the secret is shown.",
    )


_MAY = {"read": "read", "write": "read and write", "admin": "do everything"}


@app.command("list")
def list_(registry: RegistryOpt = "local", json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """List tokens, including expired and revoked ones.

    [dim]deltahub serve token list[/dim]
    """
    from dataclasses import asdict

    from deltahub.registry import stamps
    from deltahub.server.served_registry import open_registry
    from deltahub.server.tokens import Tokens

    tokens = Tokens(open_registry(registry).store).all()
    if json:
        print_json([{key: value for key, value in asdict(token).items() if key != "sha256"} for token in tokens])
        return
    now = stamps.now()
    out = Output(as_json=json, quiet=quiet)
    if not tokens:
        out.nothing("There is no token yet.", "Make one with: deltahub serve token create --name NAME --scope write")
        return
    rows = [
        (
            token.name,
            token.scope,
            "everywhere" if token.namespaces is None else ", ".join(token.namespaces),
            token.created,
            f"refused: {fault}" if (fault := token.fault(now)) else f"until {token.expires}" if token.expires else "",
            token.id,
        )
        for token in tokens
    ]
    out.rows(("name", "scope", "where", "made", "", "id"), rows)


@app.command()
def revoke(
    name: Annotated[
        str, typer.Argument(metavar="NAME|ID", help="The token's name, or the id that `token list` shows.")
    ],
    registry: RegistryOpt = "local",
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Revoke a token permanently: every process of the hub refuses it within seconds.

    [dim]deltahub serve token revoke ci[/dim]
    """
    from deltahub.server.served_registry import open_registry
    from deltahub.server.tokens import Tokens

    revoked = Tokens(open_registry(registry).store).revoke(name)
    names = ", ".join(token.name for token in revoked)
    data = {"revoked": [token.id for token in revoked], "name": names}
    Output(as_json=json, quiet=quiet).result(data, f"{names} is revoked; within seconds the hub refuses it.")
