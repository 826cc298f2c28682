"""The changes of an `Editor` as messages between a hub and its clients, and the errors that come back, in types of JSON alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from deltahub import errors
from deltahub.errors import DeltaHubError
from deltahub.files.documents import canonical_json
from deltahub.reference import DeltaPath
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.editor import Edited
from deltahub.registry.entries import Move

ANY: Final = "any"  # the key that says that an alias may point anywhere
# The errors of a change that a hub answers with, and that its client raises again.
_ERRORS: Final[dict[str, type[DeltaHubError]]] = {
    kind.__name__: kind
    for kind in (
        errors.ApprovalNeededError,
        errors.ConfigError,
        errors.ConflictError,
        errors.InUseError,
        errors.NotFoundError,
        errors.NoVersionError,
        errors.RefusedMoveError,
        errors.ReferenceSyntaxError,
        errors.RemovedError,
    )
}


def edited_to_dict(edited: Edited) -> dict[str, Any]:
    """Return the result of a change; a delta's version is sent without the part of its summary that its manifest says."""
    return {
        "document": json.loads(edited.document.to_bytes()),
        "version": edited.version,
        "undone": edited.undone.to_dict() if edited.undone else None,
        "request": edited.request,
    }


def edited_from_dict(path: DeltaPath, answer: Mapping[str, Any]) -> Edited:
    """Return the result of a change as a hub sent it.

    Raises:
        IntegrityError: the document is not one of a delta.
        KeyError, TypeError, ValueError: it is not such an answer.
    """
    document = ReferenceDocument.from_bytes(canonical_json(answer["document"]), path)
    version, request = (None if answer[key] is None else str(answer[key]) for key in ("version", "request"))
    return Edited(document, version, Move.from_dict(answer["undone"]) if answer["undone"] else None, request)


def error_to_dict(error: DeltaHubError) -> dict[str, Any]:
    """Return an error so that `error_from_dict` gives it back; nothing for one that no change has."""
    name = type(error).__name__
    return {"type": name, "arguments": list(error.args)} if name in _ERRORS else {}


def error_from_dict(answer: Any) -> DeltaHubError | None:
    """Return the error that a hub answered with; None if the answer is not such an error."""
    if (
        not isinstance(answer, dict)
        or answer.get("type") not in _ERRORS
        or not isinstance(answer.get("arguments"), list)
    ):
        return None
    arguments = [tuple(map(str, value)) if isinstance(value, list) else value for value in answer["arguments"]]
    if not all(isinstance(value, str | tuple | None) for value in arguments):
        return None
    try:
        return _ERRORS[answer["type"]](*arguments)
    except TypeError:
        return None
