"""Uploads that clients send to the bucket of a registry themselves, at signed URLs.

Such bytes arrive under `hub/incoming/<time>/<id>`, where nothing reads them. To become an object they are copied, within the bucket, to a
key that no URL was ever signed for, read once there and compared with the announced digest, and copied to the object's key. A client
that sends other bytes later, or at the same time, changes only its own copy.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from deltahub.errors import IntegrityError
from deltahub.reference import Digest
from deltahub.registry import stamps
from deltahub.registry.gc_state import spare
from deltahub.stores.base import DirectStore, Store, object_key

INCOMING: Final = "hub/incoming/"
LARGEST: Final = 5 << 30  # bytes that the services take in one request, and copy in one
_KEY: Final = re.compile(r"hub/incoming/([0-9]{8}T[0-9]{6}Z)/[0-9a-f]{32}")


def incoming_key() -> str:
    """Return a new key for an upload."""
    return f"{INCOMING}{re.sub('[:-]', '', stamps.now())}/{secrets.token_hex(16)}"


def adopt(store: DirectStore, key: str, sha256: str, size: int, note: Callable[[], None]) -> None:
    """Store uploaded bytes as an object, if they are those announced; the upload is removed either way.

    Args:
        key: from `incoming_key`.
        sha256: the announced digest, 64 hex digits.
        size: the announced number of bytes.
        note: records the upload, so that no garbage collection removes the object.

    Raises:
        NotFoundError: nothing was uploaded.
        IntegrityError: other bytes were.
    """
    checked = incoming_key()
    try:
        _require_size(store, key, size)
        store.copy(key, checked)
        _require_digest(store, checked, sha256, size)
        generation = _store_spared(store, checked, sha256)
        note()
        if spare(store, {sha256}) != generation:
            _store_spared(store, checked, sha256)
    finally:
        for each in (key, checked):
            store.delete(each)


def expire(store: Store, grace: timedelta) -> None:
    """Remove uploads that were not adopted.

    Args:
        grace: how old they must be; at least as long as their URLs are valid.
    """
    now = stamps.now()
    for key, _ in list(store.keys(INCOMING)):
        match = _KEY.fullmatch(key)
        if match is None or stamps.is_due(match[1], now, grace):
            store.delete(key)


def _store_spared(store: DirectStore, key: str, sha256: str) -> int:
    """Copy checked bytes to their object in a generation that does not delete it, and return that generation: see `gc_state`."""
    generation = spare(store, {sha256})
    while True:
        store.copy(key, object_key(sha256))
        if (now := spare(store, {sha256})) == generation:
            return generation
        generation = now


def _require_size(store: Store, key: str, size: int) -> None:
    actual = store.size(key)
    if actual != size:
        raise IntegrityError("The uploaded file", f"{size} bytes", f"{actual} bytes", "Upload it again.")


def _require_digest(store: Store, key: str, sha256: str, size: int) -> None:
    digest, count = hashlib.sha256(), 0
    for chunk in store.chunks(key):
        count += len(chunk)
        digest.update(chunk)
    if count != size or digest.hexdigest() != sha256:
        found = Digest.of_hex(digest.hexdigest()) if count == size else f"{count} bytes"
        raise IntegrityError("The uploaded file", Digest.of_hex(sha256), found, "Upload it again.")
