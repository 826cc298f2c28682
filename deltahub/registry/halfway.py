"""A rename between its steps, or one that was killed there: the delta stands under both names.

Its old document says first that it is moving, then the new one is written, then the old one says where it went. Until then the
old document is the delta, and the new one a copy that nobody may build upon.
"""

from __future__ import annotations

from deltahub.registry.document import ReferenceDocument


def came_from(document: ReferenceDocument) -> str | None:
    """The name that a delta had before, if nothing was done to it since it was renamed."""
    last = document.log[-1] if document.log and not document.moved_to else None
    return last.before if last and last.action == "rename" else None


def is_copy(document: ReferenceDocument, original: ReferenceDocument | None) -> bool:
    """Whether a document is what a rename that is not done wrote under the new name.

    Args:
        original: what is under the name that `came_from` gives.
    """
    return original is not None and original.moving is not None and original.renamed()[0] == document
