"""A choice that waits in a thread, and a real browser to make it with."""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deltahub.web import choosing
from deltahub.web.session import Session

LONG = 60.0  # seconds after which something that is waited for will never come
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Waiting:
    """A call that asks on a page, in a thread of its own.

    Args:
        call: what asks.
        told: where the address of the page is told.
        sessions: where the session is put.
    """

    def __init__(self, call: Callable[[], Any], told: queue.Queue[str], sessions: list[Session]) -> None:
        self._call = call
        self._sessions = sessions
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.url = re.search(r"http://\S+", told.get(timeout=LONG)).group()

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
        told: queue.Queue[str] = queue.Queue()
        sessions: list[Session] = []

        def new_session(*args: Any) -> Session:
            sessions.append(Session(*args, grace=grace))
            return sessions[0]

        monkeypatch.setattr(choosing, "_on_stderr", told.put)
        monkeypatch.setattr(choosing, "Session", new_session)
        started.append(Waiting(call, told, sessions))
        return started[-1]

    yield start
    for waiting in started:
        waiting.end()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; a run in CI must have one."""
    if not CHROMIUM.exists():
        why = f"there is no {CHROMIUM}: apt-get install chromium, or name one in CHROMIUM"
        (partial(pytest.fail, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip)(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address as a new visitor; whatever the page complains of fails the test."""
    contexts, complaints = [], []

    def open_page(url: str, *, strict: bool = True, ready: str = "body[data-state=ready]", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(500 * LONG)  # milliseconds
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if strict:  # else the network may complain
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(url)
        page.wait_for_selector(ready)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def keep() -> Callable[..., None]:
    """Save what a page looks like, if DELTAHUB_SCREENSHOTS names a folder for that."""

    def save(page: Any, name: str) -> None:
        if folder := os.environ.get("DELTAHUB_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}.png")  # the folder is made where there is none

    return save
