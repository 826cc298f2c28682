"""Running a hub: one or several processes on one socket, until a signal ends them.

Incoming uploads are spooled to a folder per hub in the system's temporary folder (TMPDIR changes it). A killed hub leaves its folder with unfinished uploads. The next hub on this machine removes it: every process of a hub holds a
lock on its folder, so an unlocked folder is abandoned.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from deltahub.errors import ConfigError
from deltahub.server.admission import CONNECTIONS, Connections
from deltahub.server.app import build_app
from deltahub.server.connections import GuardedProtocol
from deltahub.server.descriptors import connections_for
from deltahub.server.served_registry import open_registry
from deltahub.server.settings import Settings
from deltahub.server.telemetry import SHARED, set_up

PREFIX: Final = "deltahub-serve-"
_LOCK: Final = "in-use"


@contextlib.contextmanager
def spool() -> Iterator[Path]:
    """Create a folder for the temporary files of this process and its children; remove it afterwards.

    Raises:
        OSError: the system's temporary folder is full or not writable.
    """
    sweep()
    before = os.environ.get("TMPDIR")
    fresh = Path(tempfile.mkdtemp(prefix="deltahub-new-"))
    (fresh / _LOCK).touch()
    holder = hold(fresh)
    folder = fresh.rename(fresh.with_name(PREFIX + fresh.name))  # not visible to `sweep` before it is locked
    try:
        _move(str(folder))
        yield folder
    finally:
        _move(before)
        holder.close()
        shutil.rmtree(folder, ignore_errors=True)


def hold(folder: Path) -> IO[bytes]:
    """Hold the lock on a folder until the returned file is closed or the process ends."""
    file = (folder / _LOCK).open("rb")
    with contextlib.suppress(ImportError):  # not on Windows, where nothing is swept
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def sweep() -> None:
    """Remove the folders of killed hubs."""
    try:
        import fcntl
    except ImportError:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # OSError: the folder is in use, belongs to another user, or is just being created.
        with contextlib.suppress(OSError), (folder / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def _move(folder: str | None) -> None:
    if folder is None:
        os.environ.pop("TMPDIR", None)
    else:
        os.environ["TMPDIR"] = folder
    tempfile.tempdir = None  # looked up again


_RUN: Final = "DELTAHUB_SERVE"  # passes the run to worker processes; contains no secret
_BACKLOG: Final = 2048
_HEADER_BYTES: Final = 32 << 10


@dataclass(frozen=True, kw_only=True)
class Run:
    """Configuration of a running hub.

    Attributes:
        registry: name of the source to serve, or location of a registry: a folder or ``"s3://bucket/prefix"``.
        settings: as JSON.
        catalogue: location of a database for the catalogue, ``"postgresql://host/database"``; None for an SQLite file.
        workers: number of processes.
        certificate: file with the TLS certificate and its chain; None for plain HTTP.
        key: file with its private key; None if it is in the certificate's file.
        proxies: comma-separated addresses of proxies trusted to report a client's address; None for no proxy.
        grace: seconds for active requests to finish at shutdown.
        access: file of the access log; None for stderr.
        audit: file of the audit log; None for stderr.
        quiet: do not log successful requests to stderr.
        folder: for incoming uploads; `run` creates it.
    """

    registry: str
    settings: str
    catalogue: str | None = None
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
    """Open a listening socket.

    Raises:
        ConfigError: the address does not belong to this machine, or the port is taken or not allowed.
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
    """Check that TLS files are usable.

    Raises:
        ConfigError: they are missing, unreadable, not PEM files, or do not match.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:
        files = f"{certificate} and {key}" if key else certificate
        msg = f"TLS cannot be set up with {files}: {error.strerror or error}. Check --tls-cert and --tls-key."
        raise ConfigError(msg) from error


def run(hub: Run, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; active requests are finished first."""
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
        except (KeyboardInterrupt, SystemExit):  # uvicorn re-raises the signal that ended it
            if not server.should_exit:
                raise


def application() -> Starlette:
    """Build the application of a process from the configuration passed by `run`.

    Raises:
        DeltaHubError: its registry cannot be opened.
    """
    hub = Run(**json.loads(os.environ[_RUN]))
    holder = hold(Path(hub.folder)) if hub.folder else None
    set_up(Path(hub.access) if hub.access else None, Path(hub.audit) if hub.audit else None, quiet=hub.quiet)
    _end_with_parent()
    GuardedProtocol.admission = Connections(connections_for(CONNECTIONS), hub.proxies)
    app = build_app(open_registry(hub.registry), Settings.from_json(hub.settings), hub.catalogue)
    app.state.holder = holder  # keeps the lock while the process serves
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
        timeout_keep_alive=30,  # longer than clients pause between the files of a pull
        timeout_graceful_shutdown=int(hub.grace),
        backlog=_BACKLOG,
    )


def _end_with_parent() -> None:
    """End a worker whose parent was killed: it would keep the port without anything to restart it."""
    if parent := multiprocessing.parent_process():

        def wait() -> None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait, daemon=True, name="watch over the parent").start()
