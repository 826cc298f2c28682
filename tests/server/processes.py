"""The command `deltahub serve` as a process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-c", "from deltahub_cli.main import main; main()", "serve", "--port", "0"]


@dataclass
class Serving:
    """A hub that runs as a process.

    Attributes:
        url: where it answers.
        process: the command; with several workers, their parent.
        log: the file to which it writes stderr.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self) -> None:
        """Kill all of its processes, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)


@contextlib.contextmanager
def serving(log: Path, *arguments: object, **environment: str) -> Iterator[Serving]:
    """Run the command until the block ends."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stderr=stderr,
            stdout=stderr,
            env={**os.environ, **environment},
            start_new_session=True,  # so that all of its processes can be killed at once
        )
    try:
        yield Serving(_address(process, log), process, log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the hub says that it is; its socket takes connections before it says so."""
    while process.poll() is None:
        if match := re.search(r"served at (https?://\S+)", log.read_text()):
            return match[1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    raise AssertionError(log.read_text())
