"""The pages of a delta.

One shows card, metadata, config, metrics, files and commands; the other existing and removed versions, aliases, and the log of changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from deltahub.checkpoint.checkpoint import CARD
from deltahub.checkpoint.default_name import backbone_name
from deltahub.errors import IntegrityError, NotFoundError
from deltahub.reference import MAIN
from deltahub.registry.entries import metrics_of, number
from deltahub.registry.registry import Found
from deltahub.registry.search.conditions import Query, Search
from deltahub.server.pages.card import LARGEST, Card
from deltahub.server.pages.cards import Cards
from deltahub.server.pages.commands import commands
from deltahub.server.pages.lookups import content_of, query_visible, repository_of, version_of
from deltahub.server.pages.rendering import page, redirect
from deltahub.server.repositories import Repository
from deltahub.server.state import state_of

_SHOWN: Final = 100  # versions and log entries by default
_MOST: Final = 5000  # with ``?all``


def versions(request: Request) -> Response:
    """Show the history of a delta, newest first."""
    repository = repository_of(request)
    document = repository.document
    shows_all = "all" in request.query_params
    names = sorted({*document.versions, *document.removed}, key=number, reverse=True)
    moves = list(reversed(document.log))
    count = _MOST if shows_all else _SHOWN
    newest = names[:count]
    existing_names = [name for name in names if name in document.versions]
    return page(
        request,
        "versions.html",
        document=document,
        private=repository.private,
        names=newest,
        more=len(names) - len(newest),
        moves=moves[:count],
        more_moves=len(moves) - len(moves[:count]),
        there=existing_names,
        before=existing_names[min(1, len(existing_names) - 1)],
    )


_CARDS: Final = Cards()
_FILES: Final = 500  # listed at most
_ALIKE: Final = 8  # listed deltas of the same backbone
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


@dataclass(frozen=True)
class _Opened:
    """A version opened for display.

    Attributes:
        card: its card as pushed; empty if it cannot be shown.
        digest: the sha256 of the card.
        notice: why the card is missing, as a sentence.
    """

    repository: Repository
    delta: Found
    card: str = ""
    digest: str = ""
    notice: str = ""


async def delta(request: Request) -> Response:
    """Show a version of a delta; by default the newest."""
    opened = await run_in_threadpool(_open, request)
    if isinstance(opened, Response):
        return opened
    card: Card | str = opened.notice
    if opened.digest:
        files = [file.path for file in opened.delta.manifest.files]
        card = await _CARDS.rendered(opened.digest, opened.card, files)
    return await run_in_threadpool(_page, request, opened, card)


def _open(request: Request) -> _Opened | Response:
    repository = repository_of(request)
    path = f"{request.path_params['namespace']}/{request.path_params['name']}"
    if repository.path != path:  # renamed
        return redirect(request, f"/{repository.path}", 302)
    shown_delta = version_of(repository, request.path_params.get("revision", MAIN))
    if amended := shown_delta.entry.card:
        return _Opened(repository, shown_delta, amended, sha256(amended.encode()).hexdigest())
    entry = next((file for file in shown_delta.manifest.files if file.path == CARD), None)
    if entry is None:
        return _Opened(
            repository, shown_delta, notice="This version has no card. To add one, push it as README.md in the folder."
        )
    if entry.size > LARGEST:
        notice = f"The card has {entry.size:,} bytes; at most {LARGEST:,} are shown. Download it to read it."
        return _Opened(repository, shown_delta, notice=notice)
    try:
        text = content_of(request, entry).decode("utf-8", "replace")
    except (IntegrityError, NotFoundError):
        notice = "The card is damaged or missing. Ask the administrator of this hub to run `deltahub verify --repair`."
        return _Opened(repository, shown_delta, notice=notice)
    return _Opened(repository, shown_delta, text, entry.sha256)


def _page(request: Request, opened: _Opened, card: Card | str) -> Response:
    repository, shown_delta = opened.repository, opened.delta
    config = shown_delta.manifest.config
    rendered_card, notice = (None, card) if isinstance(card, str) else (card, "")
    if rendered_card:
        rendered_card = _CARDS.placed(rendered_card, f"/{shown_delta.document.name}", shown_delta.version)
    return page(
        request,
        "delta.html",
        document=repository.document,
        found=shown_delta,
        metrics=metrics_of(shown_delta.manifest, shown_delta.entry.summary),
        private=repository.private,
        card=rendered_card,
        files=shown_delta.manifest.files[:_FILES],
        more_files=max(0, len(shown_delta.manifest.files) - _FILES),
        without=notice,
        config={key: value for key, value in config.items() if key not in _BOOKKEEPING},
        metadata=_facts(config),
        parents=_parents(config),
        backbone=backbone_name(config),
        commands=commands(shown_delta, state_of(request).base_url(request)),
        alike=_alike(request, shown_delta),
    )


def commit(request: Request) -> Response:
    """Redirect the URL that Hub clients print after a commit."""
    repository = repository_of(request)
    version = version_of(repository, request.path_params["revision"]).version
    return redirect(request, f"/{repository.path}/tree/{version}", 302)


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata given by the author of a delta."""
    metadata = config.get("metadata")
    facts = metadata if isinstance(metadata, dict) else {}
    return {key.replace("_", " "): value for key, value in facts.items() if key not in ("tags", "test_result")}


def _parents(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parents = config.get("parents")
    return [parent for parent in parents if isinstance(parent, dict)] if isinstance(parents, list) else []


def _alike(request: Request, shown_delta: Found) -> dict[str, Any]:
    """Return other deltas trained on exactly the same backbone."""
    fingerprint = shown_delta.manifest.config.get("backbone_hash")
    if not isinstance(fingerprint, str) or not fingerprint:
        return {"fingerprint": "", "lines": [], "total": 0}
    index = state_of(request).index
    lines, total = query_visible(
        request, lambda hidden: index.search(Search(Query(fingerprint=fingerprint, hidden=hidden), _ALIKE + 1))
    )
    other_lines = [line for line in lines if line.name != shown_delta.document.name]
    document = shown_delta.document
    is_counted = document.versions[document.latest].summary.get("backbone_hash") == fingerprint
    return {"fingerprint": fingerprint, "lines": other_lines[:_ALIKE], "total": total - int(is_counted)}
