"""Changes to aliases, tags, versions and the name of a delta, for DeltaHub clients: the changes of an `Editor`, one per request.

The Hugging Face Hub has no such endpoint. A client gives each request an id: sent twice, it is carried out once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deltahub.reference import LATEST, DeltaPath, check_alias
from deltahub.registry.edit_messages import ANY, edited_to_dict
from deltahub.registry.editor import Edited, Editor, RegistryEditor
from deltahub.registry.edits import ANYTHING
from deltahub.server.bodies import LARGE, text_field, with_json
from deltahub.server.counted_responses import WholeJSONResponse, counted
from deltahub.server.errors import Refusal
from deltahub.server.repositories import Repository, find_repository, may_change, open_repository
from deltahub.server.routes.amendments import amendment_in
from deltahub.server.routes.lifecycle import move_repository
from deltahub.server.telemetry import note

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ID: Final = re.compile(r"[0-9a-f]{32}")
_LONGEST: Final = 4000  # characters of a reason
_MOST: Final = 1000  # tags, and digests that must stay
_ENTRY: Final = 2000  # approximate bytes of memory per entry of a reference document while it is sent


def edit(request: Request, body: dict[str, Any]) -> Response:
    """Make one change, and answer with the new reference document.

    Raises:
        Refusal: the request names no change.
    """
    repository = open_repository(request, write=True)
    change = _CHANGES.get(kind := text_field(body, "edit"))
    if change is None:
        raise Refusal(400, f"{kind[:60]!r} is not a change: expected one of {', '.join(_CHANGES)}.")
    request_id = text_field(body, "id", "")
    if request_id and not _ID.fullmatch(request_id):
        raise Refusal(400, f"The id of a request must be 32 hex digits, got {request_id[:60]!r}.")
    note(request, repository=repository.path, edit=kind, reason=_reason(body)[:200])
    edited = change(_Asked(request, repository, RegistryEditor(repository.registry(request, request_id)), body))
    document = edited.document
    size = _ENTRY * (len(document.versions) + len(document.removed) + len(document.log))
    return counted(request, size, lambda: WholeJSONResponse(edited_to_dict(edited)))


class _Asked:
    """One request for a change: who asks, what it is about, and its fields."""

    def __init__(self, request: Request, repository: Repository, editor: Editor, body: dict[str, Any]) -> None:
        self.request, self.repository, self.editor, self.body = request, repository, editor, body

    @property
    def path(self) -> DeltaPath:
        return self.repository.path

    def version(self) -> str | None:
        """Return the version that the request names by a version, alias, branch, digest or commit id; None for the newest."""
        if self.body.get("version") is None:
            return None
        version = text_field(self.body, "version")
        return f"sha256:{version}" if _COMMIT.fullmatch(version) else version


def _set_alias(asked: _Asked) -> Edited:
    body = asked.body
    alias = text_field(body, "alias")
    remove = body.get("remove") is True
    version = None if remove else asked.version() or LATEST
    if not remove:
        check_alias(alias)
    expect = ANYTHING if body.get("expect", ANY) == ANY else _version_or_none(body["expect"])
    return asked.editor.set_alias(asked.path, alias, version, expect=expect, reason=_reason(body))


def _version_or_none(value: Any) -> str | None:
    """Return an expected version, which is sent in a list: an empty one for an alias that must not exist."""
    if isinstance(value, list) and len(value) <= 1 and all(isinstance(item, str) for item in value):
        return value[0] if value else None
    raise Refusal(400, f"'expect' must be {ANY!r}, or a list with the expected version or nothing.")


def _undo(asked: _Asked) -> Edited:
    alias = text_field(asked.body, "alias", "") or None
    return asked.editor.undo(asked.path, alias, reason=_reason(asked.body))


def _tag(asked: _Asked) -> Edited:
    return asked.editor.set_tags(
        asked.path, asked.version(), _texts(asked.body, "add"), _texts(asked.body, "remove_tags")
    )


def _remove(asked: _Asked) -> Edited:
    text_field(asked.body, "version")  # the version to remove is never a guess
    needed = _texts(asked.body, "needed")
    return asked.editor.remove(asked.path, asked.version(), message=_reason(asked.body), needed=needed)


def _rename(asked: _Asked) -> Edited:
    new = DeltaPath(text_field(asked.body, "to"))
    move_repository(asked.request, asked.repository, new)
    return Edited(find_repository(asked.request, new, write=True).document)


def _amend(asked: _Asked) -> Edited:
    return asked.editor.amend(asked.path, asked.version(), amendment_in(asked.body))


def _ask(asked: _Asked) -> Edited:
    version = None if asked.body.get("remove") is True else asked.version() or LATEST
    return asked.editor.ask(asked.path, text_field(asked.body, "alias"), version, _reason(asked.body))


def _approve(asked: _Asked) -> Edited:
    return asked.editor.approve(asked.path, text_field(asked.body, "request"))


def _reject(asked: _Asked) -> Edited:
    return asked.editor.reject(asked.path, text_field(asked.body, "request"), _reason(asked.body))


def _record_probe(asked: _Asked) -> Edited:
    return asked.editor.record_probe(asked.path, asked.version())


def _reason(body: dict[str, Any]) -> str:
    reason = text_field(body, "reason", "")
    if len(reason) > _LONGEST:
        raise Refusal(400, f"The reason has {len(reason):,} characters; expected {_LONGEST:,} at most.")
    return reason


def _texts(body: dict[str, Any], name: str) -> list[str]:
    texts = body.get(name, [])
    if not (isinstance(texts, list) and len(texts) <= _MOST and all(isinstance(text, str) for text in texts)):
        raise Refusal(400, f"{name!r} must be a list of at most {_MOST:,} texts.")
    return texts


_CHANGES: Final[dict[str, Callable[[_Asked], Edited]]] = {
    "alias": _set_alias,
    "undo": _undo,
    "tag": _tag,
    "remove": _remove,
    "rename": _rename,
    "amend": _amend,
    "ask": _ask,
    "approve": _approve,
    "reject": _reject,
    "record_probe": _record_probe,
}

routes: Final = [
    Route("/api/deltahub/{namespace:part}/{name:part}/edits", with_json(edit, may_change, LARGE), methods=["POST"]),
]
