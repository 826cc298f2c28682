"""The front page: search, filters, sorting and paging, with the whole state in the URL."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from deltahub.errors import ConfigError
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.facets import Facet, facets
from deltahub.registry.search.index import Listed
from deltahub.server.pages.lookups import query_visible
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
    search, at = _search_of(request)
    index = state_of(request).index

    def ask(hidden: tuple[str, ...]) -> tuple[list[Listed], int, list[Facet]]:
        visible_search = replace(search, hidden=hidden)
        return *index.search(Search(visible_search, PER_PAGE, (at - 1) * PER_PAGE)), facets(index, visible_search)

    lines, total, counted_facets = query_visible(request, ask)
    pages = max(1, -(-total // PER_PAGE))
    chips = _chips(search)
    return page(
        request,
        "front.html",
        asked=search,
        sort=search.sort,
        sorts=(*SORTS, *_metric_sorts(search, lines)),
        results=[_line(entry) for entry in lines],
        nothing_at_all=not total and search == Query(sort=search.sort),
        total=total,
        first=(at - 1) * PER_PAGE + 1,
        facets=[{"title": _TITLES[facet.name], "choices": _choices(facet, search)} for facet in counted_facets],
        chips=chips,
        filtered=bool(chips),
        kept=_pairs(search),
        pages=pages,
        at=at,
        previous=_address(search, at - 1) if at > 1 else "",
        following=_address(search, at + 1) if at < pages else "",
        base=state_of(request).base_url(request),
    )


def _search_of(request: Request) -> tuple[Query, int]:
    """Return the query and page number given by the URL; invalid parts are ignored."""
    parameters = request.query_params
    search = Query(
        text=parameters.get("q", "").strip()[:_LONGEST],
        tags=tuple(dict.fromkeys(filter(None, parameters.getlist("tag"))))[:_MOST_TAGS],
        delta_type=parameters.get("type") or None,
        author=parameters.get("author") or None,
        backbone=parameters.get("backbone") or None,
        fingerprint=parameters.get("fingerprint") or None,
    )
    with contextlib.suppress(ConfigError):  # an invalid sort key
        search = replace(search, sort=parameters.get("sort") or "time")
    number = parameters.get("page", "1")
    return search, max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1


def _address(search: Query, at: int = 1) -> str:
    """Return the URL of the front page with a query."""
    return "/" + query(
        q=search.text,
        type=search.delta_type,
        backbone=search.backbone,
        tag=list(search.tags),
        author=search.author,
        fingerprint=search.fingerprint,
        sort="" if search.sort == "time" else search.sort,
        page=at if at > 1 else None,
    )


def _choices(facet: Facet, search: Query) -> list[Choice]:
    choices = []
    for value, count in facet.values:
        is_chosen = value in facet.chosen
        if facet.name == "tags":
            tags = tuple(tag for tag in search.tags if tag != value) if is_chosen else (*search.tags, value)
            next_search = replace(search, tags=tags)
        else:
            next_search = _with(search, facet.name, None if is_chosen else value)
        digest = hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()[:10]
        choices.append(Choice(f"{_KEYS[facet.name]}-{digest}", value, count, is_chosen, _address(next_search)))
    return sorted(choices, key=lambda choice: not choice.chosen)


def _with(search: Query, name: str, value: str | None) -> Query:
    values: dict[str, Any] = {name: value}
    return replace(search, **values)


def _chips(search: Query) -> list[dict[str, str]]:
    """Return the active filters, each with a link to the list without it."""
    chips = (
        [{"title": "words", "value": search.text, "href": _address(replace(search, text=""))}] if search.text else []
    )
    for name in ("delta_type", "backbone", "author", "fingerprint"):
        if value := getattr(search, name):
            title = _TITLES.get(name, name).lower()
            chips.append({"title": title, "value": value, "href": _address(_with(search, name, None))})
    for tag in search.tags:
        other_tags = tuple(other_tag for other_tag in search.tags if other_tag != tag)
        chips.append({"title": "tag", "value": tag, "href": _address(replace(search, tags=other_tags))})
    return chips


def _pairs(search: Query) -> list[tuple[str, str]]:
    """Return the hidden fields of the search form: the query without its text and order."""
    filters = [("type", search.delta_type), ("backbone", search.backbone), ("author", search.author)]
    pairs = [(name, value) for name, value in (*filters, ("fingerprint", search.fingerprint)) if value]
    return [*pairs, *(("tag", tag) for tag in search.tags)]


def _metric_sorts(search: Query, lines: list[Listed]) -> list[tuple[str, str]]:
    """Return the sort options for metrics: the current one, and those of the listed deltas."""
    names = {str(name): None for line in lines for name in _metrics(line)}
    if search.sort not in dict(SORTS):
        names = {search.sort: None, **names}
    return [(name, f"Highest {name}") for name in [*names][:6] if name not in dict(SORTS) and _is_sortable(name)]


def _is_sortable(name: str) -> bool:
    try:
        Query(sort=name)
    except ConfigError:
        return False
    return True


def _metrics(entry: Listed) -> dict[str, Any]:
    metrics = entry.summary.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _line(entry: Listed) -> Line:
    summary = entry.summary
    size = summary.get("size")
    return Line(
        name=entry.name,
        version=entry.version,
        pointing=tuple(sorted(alias for alias, version in entry.aliases.items() if version == entry.version)),
        method=summary.get("method") or summary.get("delta_type"),
        backbone=summary.get("backbone_checkpoint_name") or summary.get("backbone_class"),
        metrics=tuple(_metrics(entry).items())[:_METRICS],
        tags=entry.tags,
        size=size if isinstance(size, int) else 0,
        time=entry.time,
        author=entry.author,
    )
