"""The page of a delta: its card beside its facts, config, metrics, files, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from deltahub.checkpoint import CARD
from deltahub.errors import IntegrityError, NotFoundError
from deltahub.naming import backbone_name
from deltahub.reference import MAIN
from deltahub.registry.query import Query
from deltahub.registry.registry import Found
from deltahub.server.pages.card import LARGEST, Card, render_card
from deltahub.server.pages.commands import commands
from deltahub.server.pages.reading import content_of, of_the_seen, repository_of, version_of
from deltahub.server.pages.rendering import HEADERS, page
from deltahub.server.state import state_of

_ALIKE: Final = 8  # deltas of the same backbone that are listed
_BOOKKEEPING: Final = frozenset(
    {
        "metadata",
        "parents",
        "format_version",
        "delta_type",
        "backbone_class",
        "backbone_checkpoint_name",
        "backbone_hash",
    }
)


def delta(request: Request) -> Response:
    """One version of a delta; the newest if the address names none."""
    repository = repository_of(request)
    asked = f"{request.path_params['namespace']}/{request.path_params['name']}"
    if repository.path != asked:  # it was renamed
        return RedirectResponse(f"/{repository.path}", 302, HEADERS)
    found = version_of(repository, request.path_params.get("revision", MAIN))
    config = found.manifest.config
    card, without = _card(request, found)
    return page(
        request,
        "delta.html",
        document=repository.document,
        found=found,
        private=repository.private,
        card=card,
        without=without,
        config={key: value for key, value in config.items() if key not in _BOOKKEEPING},
        metadata=_facts(config),
        parents=_parents(config),
        backbone=backbone_name(config),
        commands=commands(found, state_of(request).base_url(request)),
        alike=_alike(request, found),
    )


def commit(request: Request) -> Response:
    """The address that clients of the Hub print after a commit."""
    repository = repository_of(request)
    version = version_of(repository, request.path_params["revision"]).version
    return RedirectResponse(f"/{repository.path}/tree/{version}", 302, HEADERS)


def _card(request: Request, found: Found) -> tuple[Card | None, str]:
    """The card, or a sentence that says why there is none."""
    entry = next((file for file in found.manifest.files if file.path == CARD), None)
    if entry is None:
        return None, "This version has no card. Push one with it: README.md in its folder."
    if entry.size > LARGEST:
        return None, f"The card has {entry.size:,} bytes; {LARGEST:,} are shown here. Download it to read it."
    try:
        text = content_of(request, entry).decode("utf-8", "replace")
    except (IntegrityError, NotFoundError):
        return None, "The card is damaged or gone. Ask whoever runs this hub to run `deltahub verify --repair`."
    files = frozenset(file.path for file in found.manifest.files)
    return render_card(text, f"/{found.document.name}", found.version, files), ""


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What its author says of a delta."""
    metadata = config.get("metadata")
    kept = metadata if isinstance(metadata, dict) else {}
    return {key.replace("_", " "): value for key, value in kept.items() if key not in ("tags", "test_result")}


def _parents(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parents = config.get("parents")
    return [parent for parent in parents if isinstance(parent, dict)] if isinstance(parents, list) else []


def _alike(request: Request, found: Found) -> dict[str, Any]:
    """Other deltas that were trained on the very same backbone."""
    fingerprint = found.manifest.config.get("backbone_hash")
    if not isinstance(fingerprint, str) or not fingerprint:
        return {"fingerprint": "", "lines": [], "total": 0}
    index = state_of(request).index
    lines, total = of_the_seen(
        request, lambda hidden: index.search(Query(fingerprint=fingerprint, hidden=hidden), _ALIKE + 1)
    )
    others = [line for line in lines if line.name != found.document.name]
    document = found.document
    own = document.versions[document.latest].summary.get("backbone_hash") == fingerprint
    return {"fingerprint": fingerprint, "lines": others[:_ALIKE], "total": total - int(own)}
