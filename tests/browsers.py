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


@pytest.fixture(scope="session")
def contexts(browser: Any) -> Iterator[Callable[..., Any]]:
    """One context of the browser for each choice of options: a new one starts a process, which takes most of a second."""
    opened: dict[str, Any] = {}

    def context(**options: Any) -> Any:
        key = repr(sorted(options.items()))
        if key not in opened:
            opened[key] = browser.new_context(**options)
            opened[key].new_page()  # keeps the process of the pages
        return opened[key]

    yield context
    for one in opened.values():
        one.close()


@pytest.fixture
def visit(contexts: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Open an address as a new visitor; whatever the page complains of fails the test."""
    pages, complaints = [], []

    def open_page(
        url: str,
        *,
        strict: bool = True,
        ready: str = "main",
        viewport: dict[str, int] | None = None,
        color_scheme: str = "light",
        **options: Any,
    ) -> Any:
        page = contexts(**options).new_page()
        pages.append(page)
        page.set_viewport_size(viewport or {"width": 1280, "height": 900})
        page.emulate_media(color_scheme=color_scheme)
        page.set_default_timeout(500 * LONG)  # milliseconds
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if strict:  # else the network may complain
            page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(url)
        page.wait_for_selector(ready)
        return page

    yield open_page
    for page in pages:
        _forget(page)
    assert not complaints, complaints


def _forget(page: Any) -> None:
    """Close a page; the next visitor finds nothing of it."""
    context = page.context
    context.clear_cookies()
    if not page.is_closed():
        context.new_cdp_session(page).send(
            "Storage.clearDataForOrigin", {"origin": page.evaluate("origin"), "storageTypes": "all"}
        )
        page.close()


@pytest.fixture
def keep() -> Callable[..., None]:
    """Save what a page looks like, if DELTAHUB_SCREENSHOTS names a folder for that."""

    def save(page: Any, name: str) -> None:
        if folder := os.environ.get("DELTAHUB_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}.png")  # the folder is made where there is none

    return save


_COLOURS = ["color-contrast", "link-in-text-block"]  # only these depend on the scheme
_LAYOUT = ["color-contrast", "target-size", "scrollable-region-focusable"]  # only these depend on the width


def violations(page: Any, *, narrow: int | None = None) -> list[str]:
    """What keeps people from using an open page, in light colours and in dark ones; the checker needs `bypass_csp`.

    With `narrow` it is made so many pixels wide in the end, and looked at again. That is enough where a narrow page shows no more.
    """
    from axe_playwright_python.base import AXE_SCRIPT, AxeResults

    def look(name: str, rules: list[str] | None) -> None:
        only = {"runOnly": rules} if rules else {}
        results = AxeResults(page.evaluate("options => axe.run(options)", {"resultTypes": ["violations"], **only}))
        if results.violations_count:
            reports.append(f"{name}: {results.generate_report()}")

    page.evaluate(AXE_SCRIPT)
    reports: list[str] = []
    page.emulate_media(color_scheme="light")
    look("light", None)
    page.emulate_media(color_scheme="dark")
    look("dark", _COLOURS)
    if narrow is not None:
        page.set_viewport_size({"width": narrow, "height": 800})
        look("narrow", _LAYOUT)
    return reports
