"""Client of the process that renders cards; see `card_worker`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from typing import Final

_PATIENCE: Final = 30.0  # seconds for one card and the start of the process, on a busy machine
_LARGEST: Final = 4 << 20  # bytes of an answer
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT")  # environment variables; secrets are not passed on


class CardProcess:
    """Worker process, started with the first card and restarted after it ended. Not thread-safe."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, line: bytes) -> bytes | None:
        """Return the answer to a line; None if it took too much time or memory."""
        for _ in range(2):  # a process that ended while idle accepts no line
            process = self._running()
            end = threading.Timer(_PATIENCE, process.kill)
            end.start()
            try:
                assert process.stdin
                assert process.stdout
                process.stdin.write(line + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline(_LARGEST)
            except OSError:
                self.close()
                continue
            finally:
                end.cancel()
            if answer.endswith(b"\n"):
                return answer
            self.close()
            return None
        return None

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):  # unwritten data is discarded
                        pipe.close()
            process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            code = f"import sys; sys.path[:] = {sys.path!r}; from deltahub.server.pages.card_worker import main; main()"
            environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(  # noqa: S603  (this Python, and code of our own)
                [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment
            )
        return self._process
