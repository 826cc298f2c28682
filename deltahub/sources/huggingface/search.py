"""Search on a hub: the repos with a delta that match a query."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from deltahub.errors import ConfigError
from deltahub.reference import Digest, as_delta_path
from deltahub.registry.metrics import Metric
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Listed
from deltahub.sources.huggingface.calls import Calls
from deltahub.sources.huggingface.fits import fitting
from deltahub.sources.huggingface.history import DOCUMENT
from deltahub.sources.huggingface.page import LIBRARY, labels
from deltahub.stores.retry import HUB_TIMEOUT

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_LIST: Final = "x-deltahub-list"  # the header of a list that answers the query as it is in the registry
_UNKNOWN: Final = ("size", "parameters")
_HOLDS: Final = {
    "<": float.__lt__,
    "<=": float.__le__,
    "=": float.__eq__,
    "!=": float.__ne__,
    ">=": float.__ge__,
    ">": float.__gt__,
}


def search_hub(calls: Calls, search: Search) -> tuple[list[Listed], int]:
    """Return the deltas that match a query in its order, and their number without limit and offset.

    A hub of DeltaHub answers as its registry does. Any other sorts out by library, tags, namespace and one word of the name; the rest is
    done here.

    Raises:
        ConfigError: a hub does not support the query.
        UnreachableError: the hub did not answer.
        StorageError: the hub refused.
    """
    query = search.query
    lines = _models(calls, _parameters(query))
    if next(lines):
        matches = [line for line in lines if isinstance(line, Listed)]
        if search.backbone is not None:
            matches = fitting(calls, matches, search.backbone, near=query.near)
        return _page(matches, search), len(matches)
    if search.backbone is not None or query.sort in _UNKNOWN:
        criterion = "which backbone a delta fits" if search.backbone is not None else f"the {query.sort} of a delta"
        msg = f"{calls.place} does not list {criterion}. Pull the deltas, or search a registry."
        raise ConfigError(msg)
    ordered = _ordered([line for line in lines if isinstance(line, Listed)], query)
    return _page(ordered, search), len(ordered)


def _page(lines: list[Listed], search: Search) -> list[Listed]:
    return lines[search.offset : None if search.limit is None else search.offset + search.limit]


def _parameters(query: Query) -> dict[str, Any]:
    """Return what any hub is asked, with the query as only a hub of DeltaHub reads it."""
    words = query.text.lower().split()
    kinds = [query.delta_type] if query.delta_type else []
    parameters: dict[str, Any] = {
        "filter": [LIBRARY, *kinds, *query.tags],
        "sort": "lastModified",
        "full": True,
        "cardData": True,
        DOCUMENT: query.to_json(),
    }
    if query.author:
        parameters["author"] = query.author
    if words:
        parameters["search"] = max(words, key=len)
    return parameters


def _ordered(entries: Iterable[Listed], query: Query) -> list[Listed]:
    """Return the lines of another hub that a query means, in its order."""
    words = query.text.lower().split()
    matches = [entry for entry in entries if _fits(entry, query, words)]
    keyed = [entry for entry in matches if _key(entry, query) is not None]
    falls = (query.sort != "name") != query.reverse
    keyed.sort(key=lambda entry: entry.name)
    keyed.sort(key=lambda entry: _key(entry, query), reverse=falls)  # type: ignore[arg-type,return-value]
    return [*keyed, *(entry for entry in matches if _key(entry, query) is None)]


def _models(calls: Calls, parameters: Mapping[str, Any]) -> Iterator[Listed | bool]:
    """Yield whether a hub answers as its registry does, and then the repos that it lists, page by page.

    huggingface_hub's own listing would retry an unreachable hub six times within half a minute, and log each attempt.
    """
    from huggingface_hub.hf_api import ModelInfo
    from huggingface_hub.utils import get_session, hf_raise_for_status

    make: Callable[..., ModelInfo] = ModelInfo  # its __init__ has no types

    def ask(url: str, params: Mapping[str, Any] | None) -> tuple[bool, list[Listed], str | None]:
        answer = get_session().get(url, params=params, headers=calls.headers(), timeout=HUB_TIMEOUT)
        hf_raise_for_status(answer)
        try:
            following = answer.links.get("next", {}).get("url")
            if _LIST in answer.headers:
                return True, [_line(str(item["id"]), item[DOCUMENT]) for item in answer.json()], following
            return False, [_entry_of(make(**item)) for item in answer.json()], following
        except (KeyError, TypeError, ValueError) as error:
            msg = f"{calls.place} does not answer with a list of repos, so it is not a hub of this protocol. Check its address."
            raise ConfigError(msg) from error

    url: str | None = f"{calls.endpoint}/api/models"
    params: Mapping[str, Any] | None = parameters
    while url:
        is_registry, entries, url = calls.make(partial(ask, url, params), "Listing deltas", f"A list of {calls.name}")
        if params:
            yield is_registry
        params = None  # the address of the next page says all
        yield from entries


def _fits(entry: Listed, query: Query, words: list[str]) -> bool:
    backbone = entry.summary.get("backbone_checkpoint_name", "")
    text = " ".join([entry.name, *entry.tags, backbone, entry.summary.get("delta_type", "")]).lower()
    metrics = entry.summary["metrics"]
    return (
        all(word in text for word in words)
        and set(query.tags) <= set(entry.tags)
        and all(_holds(metric, metrics) for metric in query.metrics)
    )


def _holds(metric: Metric, metrics: Mapping[str, Any]) -> bool:
    value = _number(metrics.get(metric.name))
    return value is not None and _HOLDS[metric.comparison](value, metric.value)


def _key(entry: Listed, query: Query) -> str | float | None:
    if query.sort in ("time", "name"):
        return entry.time if query.sort == "time" else entry.name
    return _number(entry.summary["metrics"].get(query.sort))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _entry_of(info: ModelInfo) -> Listed:
    """Return a list entry: from the line of a DeltaHub hub, or else from the card.

    Other hubs list neither the digest, the size nor the parameters, and the version is the commit.
    """
    from deltahub.checkpoint.config import known_types

    if isinstance(line := getattr(info, DOCUMENT, None), dict):
        return _line(info.id, line)

    data = cast("Any", info.card_data)
    card: dict[str, Any] = data.to_dict() if data else {}
    base = card.get("base_model") or ""
    summary = {
        "delta_type": next((tag for tag in info.tags or () if tag in known_types()), ""),
        "backbone_checkpoint_name": base if isinstance(base, str) else ", ".join(map(str, base)),
        "metrics": {result.metric_type: result.metric_value for result in _results(info)},
    }
    time = info.last_modified.strftime("%Y-%m-%dT%H:%M:%SZ") if info.last_modified else ""
    path = as_delta_path(info.id)
    author = info.author or (path.namespace if path else "")
    return Listed(info.id, info.sha or "", "", tags_of(info), {}, time, author, summary)


def _line(name: str, line: Mapping[str, Any]) -> Listed:
    """Parse a list entry of a DeltaHub hub.

    Raises:
        TypeError: it is not one.
    """
    texts = [line.get(key) for key in ("version", "digest", "time", "author")]
    tags, aliases, summary = line.get("tags"), line.get("aliases"), line.get("summary")
    if not (all(isinstance(text, str) for text in texts) and isinstance(tags, list) and isinstance(aliases, dict)):
        msg = "expected a line of a list of deltas"
        raise TypeError(msg)
    if not isinstance(summary, dict) or not isinstance(summary.setdefault("metrics", {}), dict):
        msg = "expected the summary of a delta"
        raise TypeError(msg)
    version, digest, time, author = map(str, texts)
    return Listed(name, version, Digest(digest), tuple(map(str, tags)), aliases, time, author, summary)


def tags_of(info: ModelInfo) -> tuple[str, ...]:
    """Return the tags of a delta from its page."""
    return labels(map(str, (info.card_data.tags if info.card_data else None) or ()))


def _results(info: ModelInfo) -> list[Any]:
    return list(info.card_data.eval_results or ()) if info.card_data else []
