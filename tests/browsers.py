"""A real browser to look at pages with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

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

    def open_page(url: str, *, strict: bool = True, ready: str = "main", **options: Any) -> Any:
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
    assert not complaints, complaints


@pytest.fixture
def keep() -> Callable[..., None]:
    """Save what a page looks like, if DELTAHUB_SCREENSHOTS names a folder for that."""

    def save(page: Any, name: str) -> None:
        if folder := os.environ.get("DELTAHUB_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}.png")  # the folder is made where there is none

    return save
