"""Documents that carry a checksum of themselves, so that no change of their bytes goes unseen.

An object is known by its digest; a document changes, so its digest stands in it: the sha256 of its bytes without the checksum's own.
Whoever edits a document by hand breaks it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from deltahub.manifest import canonical_json
from deltahub.schema import parse, problem


def sealed(document: Mapping[str, Any]) -> bytes:
    """A document as it is stored.

    Args:
        document: JSON without ``"checksum"``, with a later key, none of whose values before that is a mapping with an empty
            ``"checksum"``.
    """
    empty = canonical_json({**document, "checksum": ""})
    found = hashlib.sha256(empty.replace(_member(""), b"", 1)).hexdigest()
    return empty.replace(_member(""), _member(found), 1)


def unsealed(data: bytes, schema: str) -> tuple[Any, str | None]:
    """A stored document as JSON, and what is wrong with it, as a clause; None if nothing is.

    Args:
        data: its bytes.
        schema: the name of its schema, which demands a ``"checksum"``.
    """
    try:
        document = parse(data)
    except ValueError as error:
        return None, str(error)
    return document, problem(document, schema) or _broken(data, document)


def _broken(data: bytes, document: Mapping[str, Any]) -> str | None:
    """What is wrong with the checksum that stands in a document, as a clause; None if nothing is."""
    recorded = document["checksum"]
    found = hashlib.sha256(data.replace(_member(recorded), b"", 1)).hexdigest()
    return None if found == recorded else f"bytes that do not have the checksum {recorded} that stands in them"


def _member(checksum: str) -> bytes:
    return f'"checksum":"{checksum}",'.encode()
