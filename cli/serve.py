"""Command `serve`, with the commands for its tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from urllib.parse import urlsplit

import typer

from . import serve_quota, serve_token
from .options import JsonOpt, seconds, size_in_bytes
from .output import Output

if TYPE_CHECKING:
    from deltahub.server.settings import Settings

app = typer.Typer(help="Serve a registry to every client of the Hugging Face Hub, and as a web page.")
app.add_typer(serve_token.app, name="token")
app.add_typer(serve_quota.app, name="quota")

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_PACKAGES: Final = ("starlette", "uvicorn", "jinja2", "nh3", "markdown_it", "pathspec", "prometheus_client")
_RATE: Final = 100.0  # rate limit in requests per second, for hubs that other machines can reach

RegistryOpt = Annotated[
    str, typer.Option("--registry", metavar="NAME|URL", help="A source, a folder, or s3://bucket/prefix.")
]
HostOpt = Annotated[str, typer.Option("--host", help="The address to listen on; 0.0.0.0 for every one.")]
PortOpt = Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for any that is free.")]
WorkersOpt = Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes.")]
CertOpt = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="The TLS certificate, with its chain.", dir_okay=False)
]
KeyOpt = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key.", dir_okay=False)]
OpenOpt = Annotated[bool, typer.Option("--open", help="Open the web page.")]
UrlOpt = Annotated[
    str | None,
    typer.Option("--public-url", metavar="URL", help="Public address of the hub, if it is behind a proxy."),
]
ProxyOpt = Annotated[
    str | None,
    typer.Option("--proxy", metavar="ADDRESSES", help="Proxies whose word on a caller's address counts, with commas."),
]
AnonymousOpt = Annotated[
    str | None,
    typer.Option(
        "--anonymous",
        metavar="SCOPE",
        help="Without a token: none, read (public ones) or write.",
        show_default="read on this machine alone, else none",
    ),
]
ModeOpt = Annotated[
    str, typer.Option("--upload-mode", metavar="MODE", help="How clients send files: regular (all can) or lfs.")
]
DirectOpt = Annotated[
    bool,
    typer.Option(
        "--direct",
        help="Let clients fetch large files from the bucket, and with --upload-mode lfs send them there.",
    ),
]
MaxFileOpt = Annotated[str, typer.Option("--max-file", metavar="SIZE", help="The largest file: 500MB, 5GB.")]
MaxCommitOpt = Annotated[str, typer.Option("--max-commit", metavar="SIZE", help="The largest commit, files within it.")]
RateOpt = Annotated[
    float | None,
    typer.Option(
        "--rate",
        min=0,
        help="Requests a second of one caller; 0 for any number.",
        show_default="0 on this machine alone, else 100",
    ),
]
CatalogueOpt = Annotated[
    str | None,
    typer.Option(
        "--catalogue",
        metavar="URL",
        help="A PostgreSQL database, postgresql://HOST/NAME, for searches by all processes and machines.",
        show_default="an SQLite file",
    ),
]
PickleOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-pickle", metavar="NAMESPACE", help="Accept pickle files in this namespace; * for all; may be repeated."
    ),
]
PrivateWebhooksOpt = Annotated[
    bool, typer.Option("--private-webhooks", help="Also call webhooks at addresses that are not public.")
]
GraceOpt = Annotated[str, typer.Option("--grace", metavar="AGE", help="How long requests may go on after SIGTERM.")]
AccessLogOpt = Annotated[Path | None, typer.Option("--access-log", metavar="FILE", help="Requests; else on stderr.")]
AuditLogOpt = Annotated[Path | None, typer.Option("--audit-log", metavar="FILE", help="Changes; else on stderr.")]
QuietOpt = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print where the hub is and no hints, and log no requests that went well on stderr."
    ),
]


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    registry: RegistryOpt = "local",
    host: HostOpt = "127.0.0.1",
    port: PortOpt = 8000,
    workers: WorkersOpt = 1,
    tls_cert: CertOpt = None,
    tls_key: KeyOpt = None,
    open_page: OpenOpt = False,
    public_url: UrlOpt = None,
    proxy: ProxyOpt = None,
    anonymous: AnonymousOpt = None,
    upload_mode: ModeOpt = "regular",
    direct: DirectOpt = False,
    max_file: MaxFileOpt = "5GB",
    max_commit: MaxCommitOpt = "7GB",
    rate: RateOpt = None,
    catalogue: CatalogueOpt = None,
    allow_pickle: PickleOpt = None,
    private_webhooks: PrivateWebhooksOpt = False,
    grace: GraceOpt = "60s",
    access_log: AccessLogOpt = None,
    audit_log: AuditLogOpt = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Serve a registry to every client of the Hugging Face Hub, and as a web page.

    `hf`, huggingface_hub, PEFT, transformers and vLLM use it with HF_ENDPOINT alone. Writing always needs a token.

    [dim]deltahub serve --open[/dim]

    [dim]deltahub serve token create --name ci --scope write --namespace acme[/dim]

    [dim]deltahub serve --registry s3://acme/deltas --host 0.0.0.0 --port 443 --tls-cert hub.crt --tls-key hub.key --workers 4[/dim]

    [dim]HF_ENDPOINT=http://127.0.0.1:8000 hf download acme/ner[/dim]
    """
    if context.invoked_subcommand:
        return
    if tls_key and not tls_cert:
        raise typer.BadParameter("--tls-key needs the certificate that it belongs to: add --tls-cert.")
    _require_packages()
    from deltahub.server.running import Run, check_tls, listen, run

    settings = _settings(
        host, public_url, anonymous, upload_mode, direct, max_file, max_commit, rate, allow_pickle, private_webhooks
    )
    plan = Run(
        registry=registry,
        settings=settings.to_json(),
        catalogue=catalogue,
        workers=workers,
        certificate=str(tls_cert) if tls_cert else None,
        key=str(tls_key) if tls_key else None,
        proxies=proxy,
        grace=seconds(grace, "--grace"),
        access=str(access_log) if access_log else None,
        audit=str(audit_log) if audit_log else None,
        quiet=quiet,
    )
    if plan.certificate:
        check_tls(plan.certificate, plan.key)
    place, tokens_known = _opened(registry, direct=direct, catalogue=catalogue)
    listener = listen(host, port)
    address = public_url or f"{'https' if tls_cert else 'http'}://{_shown(host)}:{listener.getsockname()[1]}"
    in_clear = not (host in _LOOPBACK or tls_cert or public_url)
    _say(Output(as_json=json, quiet=quiet), address, place, tokens_known, settings, in_clear=in_clear)
    if open_page:
        import webbrowser

        webbrowser.open(address)
    run(plan, listener)


def _settings(
    host: str,
    public_url: str | None,
    anonymous: str | None,
    upload_mode: str,
    direct: bool,
    max_file: str,
    max_commit: str,
    rate: float | None,
    allow_pickle: Sequence[str] | None,
    private_webhooks: bool,
) -> Settings:
    """Build the server's settings from the options; the defaults are less strict if only this machine can reach the hub."""
    from deltahub.server.access import SCOPES
    from deltahub.server.settings import MODES, Settings

    alone = host in _LOOPBACK
    return Settings(
        public_url=public_url,
        hosts=_names(host, public_url) if alone else (),
        anonymous=_one_of(SCOPES, anonymous or ("read" if alone else "none"), "--anonymous"),
        upload_mode=_one_of(MODES, upload_mode, "--upload-mode"),
        direct=direct,
        max_file=size_in_bytes(max_file, "--max-file"),
        max_commit=size_in_bytes(max_commit, "--max-commit"),
        rate=rate if rate is not None else 0.0 if alone else _RATE,
        open_metrics=alone,
        pickle_namespaces=tuple(allow_pickle or ()),
        private_webhooks=private_webhooks,
    )


def _opened(registry: str, *, direct: bool, catalogue: str | None) -> tuple[str, bool]:
    """Return a registry's address for display, and whether it has an unrevoked token; each process opens the registry itself."""
    from deltahub.registry.search.catalogue import open_catalogue
    from deltahub.server.served_registry import open_registry
    from deltahub.server.tokens import Tokens
    from deltahub.settings.environment import cache_home
    from deltahub.stores.base import DirectStore

    opened = open_registry(registry)
    open_catalogue(opened, cache_home(), catalogue)
    if direct and not isinstance(opened.store, DirectStore):
        msg = f"--direct lets clients speak with a bucket, and {opened.place} is not in one. Leave it out."
        raise typer.BadParameter(msg)
    return opened.place, any(not token.revoked for token in Tokens(opened.store).all())


_Choice = TypeVar("_Choice", bound=str)


def _one_of(choices: Sequence[_Choice], text: str, option: str) -> _Choice:
    match = next((choice for choice in choices if choice == text), None)
    if match is None:
        msg = f"expected one of {', '.join(choices)}; got {text!r}"
        raise typer.BadParameter(msg, param_hint=option)
    return match


def _require_packages() -> None:
    """Check that the extra is installed.

    Raises:
        ConfigError: it is not installed.
    """
    from importlib.util import find_spec

    from deltahub.errors import ConfigError

    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        msg = f"`deltahub serve` needs the package {missing[0]}, which is not installed: pip install 'deltahub[serve]'"
        raise ConfigError(msg)


def _names(host: str, public_url: str | None) -> tuple[str, ...]:
    """Return the host names allowed for a hub that only this machine can reach, so that a foreign page cannot use its own name."""
    public = urlsplit(public_url).hostname if public_url else None
    return tuple(sorted({host, *_LOOPBACK, *([public] if public else [])}))


def _shown(host: str) -> str:
    host = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104  (compared, not bound)
    return f"[{host}]" if ":" in host else host


def _say(out: Output, address: str, place: str, tokens_known: bool, settings: Settings, *, in_clear: bool) -> None:
    """Print the hub's address, and warnings for its owner."""
    hints = [f"Clients of the Hugging Face Hub use it with HF_ENDPOINT={address}"]
    if not tokens_known and settings.anonymous != "write":
        hints.append("No token may push yet: deltahub serve token create --name NAME --scope write")
    if settings.anonymous == "write":
        hints.append("Anyone who reaches this address may push and delete without a token.")
    if in_clear:
        hints.append(
            "Tokens and files travel unencrypted: add --tls-cert and --tls-key, or put a proxy with TLS before the hub."
        )
    out.result({"url": address, "registry": place}, f"{place} is served at {address}", *hints)
    sys.stdout.flush()  # a pipe would buffer it as long as the hub runs
