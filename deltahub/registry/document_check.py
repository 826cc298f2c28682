"""Integrity checks of a stored reference document: its schema, its checksum and its internal references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deltahub.errors import CheckpointError, IntegrityError
from deltahub.files.documents import parse_stored
from deltahub.reference import as_delta_path

SCHEMA: Final = "reference.v1"
SCHEMA_VERSION: Final = 1
# For a document with an amended version, which earlier releases refuse with the advice to update; version 2 does not exist.
AMENDED_VERSION: Final = 3
# For a document with a request for a move of an alias, or a move with a reason, approvals or an id of its request.
PROMOTED_VERSION: Final = 4


def read_whole(data: bytes, name: str = "") -> Mapping[str, Any]:
    """Return a stored reference document as JSON, checked by the schema `reference.v1`.

    Args:
        name: the name it is stored under, ``"namespace/name"``, for messages.

    Raises:
        IntegrityError: it is not a valid reference document.
        CheckpointError: a later deltahub wrote it.
    """
    document, wrong = parse_stored(data, SCHEMA)
    if wrong := wrong or _misnamed(document) or _dangling(document):
        raise _unreadable(name, wrong, document)
    checked: Mapping[str, Any] = document
    return checked


def _unreadable(name: str, wrong: str, document: Any) -> CheckpointError | IntegrityError:
    subject = f"The reference document of {name}" if name else "A reference document"
    schema = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION and schema not in (AMENDED_VERSION, PROMOTED_VERSION):
        msg = f"{subject} has schema_version {schema}; this deltahub reads {PROMOTED_VERSION}. Update deltahub."
        return CheckpointError(msg)
    remedy = (
        f"Restore refs/{name or '...'}.json in its registry from a copy, or move it away and push the delta again; the files "
        "of its versions are stored apart."
    )
    return IntegrityError(subject, "versions, aliases, tags and a log", wrong, remedy)


def _misnamed(document: Mapping[str, Any]) -> str | None:
    """Return the first name in the document that is not the name of a delta; None if there is none."""
    paths = (document["name"], document.get("moved_to"), document.get("moving", {}).get("to"))
    return next((f"the name {path!r}" for path in paths if path is not None and not as_delta_path(path)), None)


def _dangling(document: Mapping[str, Any]) -> str | None:
    """Return the first inconsistency, such as an alias of a missing version or a number used twice; None if there is none."""
    removed, moved = document.get("removed", {}), document.get("moved_to")
    if twice := sorted(removed.keys() & document["versions"].keys()):
        return f"{twice[0]} is there and removed at once"
    if bool(moved) == bool(document["versions"] or removed):
        return f"versions beside the new name {moved}" if moved else "no version"
    if moved and "moving" in document:
        return f"a rename that is not done beside the new name {moved}"
    targets = [
        *((f"the alias {alias!r} of", version) for alias, version in document["aliases"].items()),
        *((f"the branch {branch!r} of", version) for branch, version in document.get("branches", {}).items()),
        *(
            (f"the request {request!r} about", version)
            for request, stored in document.get("requests", {}).items()
            for version in (stored["before"], stored["after"])
        ),
    ]
    missing = (
        f"{user} {version}, which is not there"
        for user, version in targets
        if version is not None and version not in document["versions"]
    )
    return next(missing, None)
