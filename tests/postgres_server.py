"""A server of PostgreSQL for the tests: one for each run, on a socket in a folder of its own, with a database for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.s3_servers import end_with_parent

_NOBODY = 65534  # the server refuses to run as root
_WAIT = 60.0  # seconds for the server to start


@dataclass
class PostgresServer:
    """A running server.

    Attributes:
        folder: of its socket.
    """

    folder: Path
    program: Path
    process: subprocess.Popen[bytes] | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import psycopg

        command = [self.program / "postgres", "-D", self.folder / "data", "-k", self.folder, "-c", "listen_addresses="]
        settings = ["-F", "-c", "full_page_writes=off", "-c", "max_wal_size=4GB", "-c", "shared_buffers=256MB"]
        self.process = subprocess.Popen(
            [*command, *settings],
            stderr=subprocess.DEVNULL,
            preexec_fn=end_with_parent,  # noqa: PLW1509  (it takes no lock)
            **_account(),
        )
        until = time.monotonic() + _WAIT
        while True:
            try:
                psycopg.connect(self.location("postgres")).close()
            except psycopg.OperationalError:
                assert time.monotonic() < until, "PostgreSQL does not start"
                assert self.process.poll() is None, "PostgreSQL ended"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End it at once."""
        if self.process:
            self.process.send_signal(3)  # SIGQUIT: without waiting for its clients
            self.process.wait(30)
            self.process = None

    def location(self, database: str) -> str:
        """Return the location of a database."""
        return f"postgresql://deltahub@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """Make a database of an ordinary user, and return its location."""
        import psycopg

        name = f"test{next(self.numbers)}"
        with psycopg.connect(self.location("postgres"), autocommit=True) as connection:
            if name == "test0":
                connection.execute("CREATE ROLE hub LOGIN")
            connection.execute(f"CREATE DATABASE {name} OWNER hub".encode())
        return self.location(name).replace("deltahub@", "hub@")


def _account() -> dict[str, int]:
    return {"user": _NOBODY, "group": _NOBODY} if hasattr(os, "geteuid") and os.geteuid() == 0 else {}


def _program() -> Path | None:
    """Return the folder of the server's programs; Debian's packages keep them out of the search path."""
    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    return next((place for place in places if (place / "initdb").is_file() and (place / "postgres").is_file()), None)


def new_postgres(folder: Path) -> PostgresServer:
    """Start a server in an empty folder."""
    program = _program()
    reason = "PostgreSQL is not installed: apt-get install postgresql"
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    if account := _account():
        os.chown(folder, account["user"], account["group"])
    command = [program / "initdb", "-D", folder / "data", "-U", "deltahub", "-A", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(
        [*command, "--locale=C"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **_account()
    )
    server = PostgresServer(folder, program)
    server.start()
    return server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for all tests of a process."""
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # the path of a socket must be short
    server = None
    try:
        server = new_postgres(folder)
        yield server
    finally:
        if server:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
