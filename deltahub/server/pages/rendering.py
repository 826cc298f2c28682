"""Rendering of templates, and the headers of all pages."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse

from deltahub.server.access import caller_of
from deltahub.server.state import state_of

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"
THEMES: Final = ("light", "dark")
THEME_COOKIE: Final = "deltahub_theme"
HEADERS: Final = {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",  # not "no-referrer": forms would then send no origin, which is needed to check them
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_TAG: Final = re.compile(r"<[a-z](?:[^<>\"]|\"[^\"]*\")*>")
_ROOTED: Final = re.compile(r'(\s(?:href|src|action|formaction|hx-get)=")/(?!/)')
_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")
_AGES: Final = ((60, "second"), (60, "minute"), (24, "hour"), (30, "day"), (12, "month"), (10**9, "year"))


def page(request: HTTPConnection, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a page.

    Args:
        template: file name in `templates/`.
        values: variables of the template.
    """
    theme = request.cookies.get(THEME_COOKIE, "")
    text = (
        _environment()
        .get_template(template)
        .render(
            caller=caller_of(request),
            theme=theme if theme in THEMES else "",
            here=own_address(request),
            place=state_of(request).registry.name,
            status=status,
            **values,
        )
    )
    return HTMLResponse(_below(_prefix(request), text), status, HEADERS)


def redirect(request: HTTPConnection, address: str, status: int = 303) -> RedirectResponse:
    """Redirect a browser to another page.

    Args:
        address: path of the page within the hub, as in templates.
    """
    return RedirectResponse(_prefix(request) + address, status, HEADERS)


def _prefix(request: HTTPConnection) -> str:
    """Return the path prefix of the hub's public URL; empty if it has none."""
    return urlsplit(state_of(request).settings.public_url or "").path.rstrip("/")


def _below(prefix: str, text: str) -> str:
    """Return a page with a path prefix added to all links, forms and files, which templates write from the root."""
    if not prefix:
        return text
    return _TAG.sub(lambda tag: _ROOTED.sub(rf"\1{prefix}/", tag[0]), text)


def own_address(request: HTTPConnection) -> str:
    """Return path and query of a request, as a link within the hub."""
    return f"/{request.url.path.lstrip('/')}" + (f"?{request.url.query}" if request.url.query else "")


@cache
def static_files() -> Mapping[str, tuple[bytes, str]]:
    """Return the static files of the pages by name, each with the start of its sha256."""
    paths = sorted(path for folder in (STATIC, STATIC / "vendor") for path in folder.iterdir() if path.is_file())
    return {path.name: (data := path.read_bytes(), hashlib.sha256(data).hexdigest()[:12]) for path in paths}


def static_address(name: str) -> str:
    """Return the URL of a static file; it changes with the content, so that browsers may cache it."""
    return f"/-/static/{name}?v={static_files()[name][1]}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(static=static_address, query=query)
    environment.filters.update(
        size=size, age=age, number=number, visible=visible, value_text=value_text, part=part, path=quote
    )
    return environment


def part(text: str) -> str:
    """Quote text as one segment of a path."""
    return quote(text, safe="")


def query(**values: Any) -> str:
    """Return a query string without empty values; lists repeat their key."""
    pairs = {key: value for key, value in values.items() if value not in (None, "", [], (), False)}
    return f"?{urlencode(pairs, doseq=True)}" if pairs else ""


def size(count: float) -> str:
    """Format bytes in the largest unit that gives at least 1."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def age(time: str, now: datetime | None = None) -> str:
    """Format the time since a moment in its largest unit: ``"3 days ago"``; return invalid times unchanged."""
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return time
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 45:
        return "just now"
    for count, unit in _AGES:
        if seconds < count:
            amount = max(1, int(seconds))
            return f"{amount} {unit}{'' if amount == 1 else 's'} ago"
        seconds /= count
    raise AssertionError("unreachable")


def number(value: Any) -> str:
    """Format a metric or count briefly."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return visible(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def value_text(value: Any) -> str:
    """Format a config value as text."""
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def visible(text: str) -> str:
    """Escape invisible characters and those that change the direction of text."""
    lines = str(text).replace("\r\n", "\n")
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\u{ord(char):04x}" for char in lines)
