"""Running a hub: one process or several on one socket, until a signal ends them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import ssl
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from deltahub.errors import ConfigError
from deltahub.server.admission import CONNECTIONS, Connections
from deltahub.server.app import build_app
from deltahub.server.descriptors import connections_for
from deltahub.server.journal import set_up
from deltahub.server.metrics import SHARED
from deltahub.server.protocol import GuardedProtocol
from deltahub.server.served import open_registry
from deltahub.server.settings import Settings
from deltahub.server.spooling import hold, spool

_RUN: Final = "DELTAHUB_SERVE"  # how a process learns what it serves; no secret is in it
_BACKLOG: Final = 2048
_HEADER_BYTES: Final = 32 << 10


@dataclass(frozen=True, kw_only=True)
class Run:
    """One hub that runs.

    Attributes:
        registry: the source it serves, by its name, or the place of a registry: a folder or ``"s3://bucket/prefix"``.
        settings: as JSON.
        workers: processes.
        certificate: file of the TLS certificate and its chain; None for plain HTTP.
        key: file of its private key; None if it is in the certificate's file.
        proxies: addresses of proxies whose word on a caller's address counts, with commas between; None for none.
        grace: seconds that requests under way get to finish when the hub is told to end.
        access: file of the access log; None for stderr.
        audit: file of the audit log; None for stderr.
        quiet: log no requests that went well on stderr.
        folder: for what is coming in; `run` makes it.
    """

    registry: str
    settings: str
    workers: int = 1
    certificate: str | None = None
    key: str | None = None
    proxies: str | None = None
    grace: float = 60.0
    access: str | None = None
    audit: str | None = None
    quiet: bool = False
    folder: str = ""


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken or not allowed.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        msg = f"Cannot listen on {host}, port {port}: {error.strerror or error}. Choose another with --host or --port."
        raise ConfigError(msg) from error
    listener.set_inheritable(True)
    return listener


def check_tls(certificate: str, key: str | None) -> None:
    """Check that TLS files can be used.

    Raises:
        ConfigError: they are not there, not readable, no PEM files, or do not belong together.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:
        files = f"{certificate} and {key}" if key else certificate
        msg = f"TLS cannot be had with {files}: {error.strerror or error}. Check --tls-cert and --tls-key."
        raise ConfigError(msg) from error


def run(hub: Run, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are finished first."""
    config = _config(hub)
    with spool() as folder:
        os.environ[_RUN] = json.dumps({**asdict(hub), "folder": str(folder)})
        if hub.workers > 1:
            if not os.environ.get(SHARED):
                os.environ[SHARED] = tempfile.mkdtemp(prefix="metrics-")
            Multiprocess(config, sockets=[listener]).run()
            return
        server = uvicorn.Server(config)
        try:
            server.run(sockets=[listener])
        except (KeyboardInterrupt, SystemExit):  # uvicorn repeats the signal that ended it
            if not server.should_exit:
                raise


def application() -> Starlette:
    """The application of one process, as `run` described it.

    Raises:
        DeltaHubError: its registry cannot be opened.
    """
    hub = Run(**json.loads(os.environ[_RUN]))
    holder = hold(Path(hub.folder)) if hub.folder else None
    set_up(Path(hub.access) if hub.access else None, Path(hub.audit) if hub.audit else None, quiet=hub.quiet)
    _end_with_parent()
    GuardedProtocol.admission = Connections(connections_for(CONNECTIONS), hub.proxies)
    app = build_app(open_registry(hub.registry), Settings.from_json(hub.settings))
    app.state.holder = holder  # for as long as the process serves
    return app


def _config(hub: Run) -> uvicorn.Config:
    return uvicorn.Config(
        f"{__name__}:{application.__name__}",
        factory=True,
        workers=hub.workers,
        http=GuardedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=hub.proxies is not None,
        forwarded_allow_ips=hub.proxies or "",
        ssl_certfile=hub.certificate,
        ssl_keyfile=hub.key,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=30,  # longer than clients wait between the files of one pull
        timeout_graceful_shutdown=int(hub.grace),
        backlog=_BACKLOG,
    )


def _end_with_parent() -> None:
    """End a worker whose parent was killed: it would hold the port, and nobody would restart it."""
    if parent := multiprocessing.parent_process():

        def wait() -> None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait, daemon=True, name="watch over the parent").start()
