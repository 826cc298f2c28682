"""A choice that waits in a thread, and a real browser to make it with."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from deltahub.picker import choosing
from deltahub.picker.session import Session
from tests.browsers import LONG


class Waiting:
    """A call that asks on a page, in a thread of its own.

    Args:
        call: what asks.
        told: where the address of the page is told.
        sessions: where the session is put.
    """

    def __init__(self, call: Callable[[], Any], output: queue.Queue[str], sessions: list[Session]) -> None:
        self._call = call
        self._sessions = sessions
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.url = re.search(r"http://\S+", output.get(timeout=LONG)).group()

    def _run(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:  # noqa: BLE001  (raised again by `result`)
            self.error = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> None:
        """End the wait from this side, as a program that ends does."""
        self._sessions[0].cancel()
        self._thread.join(LONG)

    def result(self) -> Any:
        """What the call returns, or its error."""
        self._thread.join(LONG)
        assert self.over
        if self.error is not None:
            raise self.error
        return self.value


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Waiting]]:
    """Start a call that asks on a page; `grace` is how many seconds the page may be away."""
    started: list[Waiting] = []

    def start(call: Callable[[], Any], grace: float = LONG) -> Waiting:
        output: queue.Queue[str] = queue.Queue()
        sessions: list[Session] = []

        def new_session(*args: Any) -> Session:
            sessions.append(Session(*args, grace=grace))
            return sessions[0]

        monkeypatch.setattr(choosing, "_on_stderr", output.put)
        monkeypatch.setattr(choosing, "Session", new_session)
        started.append(Waiting(call, output, sessions))
        return started[-1]

    yield start
    for waiting in started:
        waiting.end()


@pytest.fixture
def visit(visit: Callable[..., Any]) -> Callable[..., Any]:
    """Open an address and wait until the page has what it shows."""
    return partial(visit, ready="body[data-state=ready]")
