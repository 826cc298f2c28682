"""Azurite, the emulator of Azure Blob Storage by Microsoft, with one container."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

from tests.s3_servers import free_ports, unavailable

CONTAINER = "deltas"
ACCOUNT = "devstoreaccount1"
KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's own, public
)
_START = 60  # seconds that it may take to answer


@contextlib.contextmanager
def azure_server(folder: Path) -> Iterator[str]:
    """Yield the URL of the account; the output goes to `folder`."""
    program = shutil.which("azurite-blob")
    if program is None:
        unavailable("Azurite is not installed: npm install --global azurite")
    (port,) = free_ports(1)
    command = [
        program,
        "--inMemoryPersistence",
        "--blobPort",
        str(port),
        "--silent",
        "--skipApiVersionCheck",
        "--disableTelemetry",
    ]
    with (folder / "azurite.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/{ACCOUNT}"
        _make_container(url, process)
        yield url
    finally:
        process.kill()
        process.wait(_START)


def _make_container(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START
    while True:
        try:
            urllib.request.urlopen(_signed(url), timeout=5).close()
        except urllib.error.HTTPError as error:
            unavailable(f"Azurite answers {error.code}: {error.read()[:300]!r}")
        except OSError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                unavailable("Azurite ended")
            if time.monotonic() > end:
                unavailable(f"Azurite did not answer within {_START} s")
        else:
            return


def _signed(url: str) -> urllib.request.Request:
    """Return the request that makes the container, signed with the account's key."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    text = "\n".join([*lines, f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}", "restype:container"])
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
    return urllib.request.Request(f"{url}/{CONTAINER}?restype=container", method="PUT", headers=headers)
