"""The front page: search, filters, sorting and paging, with the whole state in the URL."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from deltahub.errors import ConfigError
from deltahub.registry.search.conditions import Query
from deltahub.registry.search.facets import Facet, facets
from deltahub.registry.search.index import Listed
from deltahub.server.pages.lookups import of_the_seen
from deltahub.server.pages.rendering import page, query
from deltahub.server.state import state_of

PER_PAGE: Final = 25
_METRICS: Final = 3  # per line
_MOST_TAGS: Final = 32  # per search
_LONGEST: Final = 200  # characters of a search
SORTS: Final = (
    ("time", "Newest"),
    ("name", "Name"),
    ("size", "Largest"),
    ("parameters", "Most parameters"),
)
_TITLES: Final = {"delta_type": "Method", "backbone": "Backbone", "tags": "Tags", "author": "Author"}
_KEYS: Final = {"delta_type": "type", "backbone": "backbone", "tags": "tag", "author": "author"}  # query parameters


@dataclass(frozen=True)
class Choice:
    """One value of a facet, as a link.

    Attributes:
        id: keeps the focus in place when the list is reloaded.
        href: the list with the value selected, or without it if it is selected already.
    """

    id: str
    value: str
    count: int
    chosen: bool
    href: str


@dataclass(frozen=True)
class Line:
    """One delta of the list."""

    name: str
    version: str
    pointing: tuple[str, ...]
    method: Any
    backbone: Any
    metrics: tuple[tuple[str, Any], ...]
    tags: tuple[str, ...]
    size: int
    time: str
    author: str
    private: bool = False


def front(request: Request) -> Response:
    """Show the newest versions of all deltas that the caller may see."""
    asked, at = _asked(request)
    index = state_of(request).index

    def ask(hidden: tuple[str, ...]) -> tuple[list[Listed], int, list[Facet]]:
        seen = replace(asked, hidden=hidden)
        return *index.search(seen, PER_PAGE, (at - 1) * PER_PAGE), facets(index, seen)

    lines, total, found = of_the_seen(request, ask)
    pages = max(1, -(-total // PER_PAGE))
    chips = _chips(asked)
    return page(
        request,
        "front.html",
        asked=asked,
        sort=asked.sort,
        sorts=(*SORTS, *_metric_sorts(asked, lines)),
        results=[_line(entry) for entry in lines],
        nothing_at_all=not total and asked == Query(sort=asked.sort),
        total=total,
        first=(at - 1) * PER_PAGE + 1,
        facets=[{"title": _TITLES[facet.name], "choices": _choices(facet, asked)} for facet in found],
        chips=chips,
        filtered=bool(chips),
        kept=_pairs(asked),
        pages=pages,
        at=at,
        previous=_address(asked, at - 1) if at > 1 else "",
        following=_address(asked, at + 1) if at < pages else "",
        base=state_of(request).base_url(request),
    )


def _asked(request: Request) -> tuple[Query, int]:
    """Return the query and page number given by the URL; invalid parts are ignored."""
    given = request.query_params
    asked = Query(
        text=given.get("q", "").strip()[:_LONGEST],
        tags=tuple(dict.fromkeys(filter(None, given.getlist("tag"))))[:_MOST_TAGS],
        delta_type=given.get("type") or None,
        author=given.get("author") or None,
        backbone=given.get("backbone") or None,
        fingerprint=given.get("fingerprint") or None,
    )
    with contextlib.suppress(ConfigError):  # an invalid sort key
        asked = replace(asked, sort=given.get("sort") or "time")
    number = given.get("page", "1")
    return asked, max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1


def _address(asked: Query, at: int = 1) -> str:
    """Return the URL of the front page with a query."""
    return "/" + query(
        q=asked.text,
        type=asked.delta_type,
        backbone=asked.backbone,
        tag=list(asked.tags),
        author=asked.author,
        fingerprint=asked.fingerprint,
        sort="" if asked.sort == "time" else asked.sort,
        page=at if at > 1 else None,
    )


def _choices(facet: Facet, asked: Query) -> list[Choice]:
    choices = []
    for value, count in facet.values:
        chosen = value in facet.chosen
        if facet.name == "tags":
            tags = tuple(tag for tag in asked.tags if tag != value) if chosen else (*asked.tags, value)
            changed = replace(asked, tags=tags)
        else:
            changed = _with(asked, facet.name, None if chosen else value)
        digest = hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:10]
        choices.append(Choice(f"{_KEYS[facet.name]}-{digest}", value, count, chosen, _address(changed)))
    return sorted(choices, key=lambda choice: not choice.chosen)


def _with(asked: Query, name: str, value: str | None) -> Query:
    changed: dict[str, Any] = {name: value}
    return replace(asked, **changed)


def _chips(asked: Query) -> list[dict[str, str]]:
    """Return the active filters, each with a link to the list without it."""
    chips = [{"title": "words", "value": asked.text, "href": _address(replace(asked, text=""))}] if asked.text else []
    for name in ("delta_type", "backbone", "author", "fingerprint"):
        if value := getattr(asked, name):
            title = _TITLES.get(name, name).lower()
            chips.append({"title": title, "value": value, "href": _address(_with(asked, name, None))})
    for tag in asked.tags:
        others = tuple(other for other in asked.tags if other != tag)
        chips.append({"title": "tag", "value": tag, "href": _address(replace(asked, tags=others))})
    return chips


def _pairs(asked: Query) -> list[tuple[str, str]]:
    """Return the hidden fields of the search form: the query without its text and order."""
    named = [("type", asked.delta_type), ("backbone", asked.backbone), ("author", asked.author)]
    found = [(name, value) for name, value in (*named, ("fingerprint", asked.fingerprint)) if value]
    return [*found, *(("tag", tag) for tag in asked.tags)]


def _metric_sorts(asked: Query, lines: list[Listed]) -> list[tuple[str, str]]:
    """Return the sort options for metrics: the current one, and those of the listed deltas."""
    named = {str(name): None for line in lines for name in _metrics(line)}
    if asked.sort not in dict(SORTS):
        named = {asked.sort: None, **named}
    return [(name, f"Highest {name}") for name in [*named][:6] if name not in dict(SORTS) and _sortable(name)]


def _sortable(name: str) -> bool:
    try:
        Query(sort=name)
    except ConfigError:
        return False
    return True


def _metrics(entry: Listed) -> dict[str, Any]:
    found = entry.summary.get("metrics")
    return found if isinstance(found, dict) else {}


def _line(entry: Listed) -> Line:
    summary = entry.summary
    size = summary.get("size")
    return Line(
        name=entry.name,
        version=entry.version,
        pointing=tuple(sorted(alias for alias, version in entry.aliases.items() if version == entry.version)),
        method=summary.get("delta_type"),
        backbone=summary.get("backbone_checkpoint_name") or summary.get("backbone_class"),
        metrics=tuple(_metrics(entry).items())[:_METRICS],
        tags=entry.tags,
        size=size if isinstance(size, int) else 0,
        time=entry.time,
        author=entry.author,
    )
