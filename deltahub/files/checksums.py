"""JSON documents with their own checksum, so that any change of their bytes is detected.

An object is addressed by its digest; a document is mutable, so it contains its digest: the sha256 of its bytes without the checksum's
own. Editing a document by hand breaks it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from deltahub.checkpoint.manifest import canonical_json
from deltahub.files.documents import parse, problem


def sealed(document: Mapping[str, Any]) -> bytes:
    """Serialise a document with its checksum.

    Args:
        document: JSON without ``"checksum"``, with a key that sorts after it; no value before that key may be a mapping with an empty
            ``"checksum"``.
    """
    empty = canonical_json({**document, "checksum": ""})
    found = hashlib.sha256(empty.replace(_member(""), b"", 1)).hexdigest()
    return empty.replace(_member(""), _member(found), 1)


def unsealed(data: bytes, schema: str) -> tuple[Any, str | None]:
    """Parse a stored document; return it with the first problem, as a clause, or None if it is valid.

    Args:
        data: its bytes.
        schema: the name of its schema, which requires a ``"checksum"``.
    """
    try:
        document = parse(data)
    except ValueError as error:
        return None, str(error)
    return document, problem(document, schema) or _broken(data, document)


def _broken(data: bytes, document: Mapping[str, Any]) -> str | None:
    """Check the checksum in a document; return the problem as a clause, or None."""
    recorded = document["checksum"]
    found = hashlib.sha256(data.replace(_member(recorded), b"", 1)).hexdigest()
    return None if found == recorded else f"bytes that do not have the checksum {recorded} that stands in them"


def _member(checksum: str) -> bytes:
    return f'"checksum":"{checksum}",'.encode()
