"""An unfinished rename, under way or interrupted: the delta is stored under both names.

First its old document records the move, then the new one is written, then the old one becomes a redirect. Until then the old
document is the delta, and the new one is a copy that must not be built upon.
"""

from __future__ import annotations

from deltahub.registry.document import ReferenceDocument


def came_from(document: ReferenceDocument) -> str | None:
    """Return the delta's former name, if nothing changed since its rename."""
    last = document.log[-1] if document.log and not document.moved_to else None
    return last.before if last and last.action == "rename" else None


def is_copy(document: ReferenceDocument, original: ReferenceDocument | None) -> bool:
    """Check whether a document is the copy that an unfinished rename wrote under the new name.

    Args:
        original: the document under the name that `came_from` returns.
    """
    return original is not None and original.moving is not None and original.renamed()[0] == document
