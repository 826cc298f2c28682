"""A rename between its two steps, or one that was killed there: the delta stands under both names.

The document under the new name is written first, and the old name leads to it only then. Until then the old document is the delta, and
the new one a copy that nobody may build upon: what is written to it would be overwritten, or would be a second delta.
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
        original: what is under the name that `came_from` gives. It is no original if it leads to the document, if it was
            renamed back in the meantime, or if it lacks something that the document has.
    """
    if original is None or original.moved_to:
        return False
    *before, last = document.log
    return list(original.log[: len(before)]) == before and original.log[len(before) : len(before) + 1] != (last,)
