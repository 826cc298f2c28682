"""Uploads to a bucket: a small object in one request, a big one in parts, either only if it has the digest announced."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deltahub.files import CHUNK, sha256_file
from deltahub.stores.base import Progress, Source, object_key, require_digest
from deltahub.stores.bucket import PART
from deltahub.stores.waiting import Stopped

if TYPE_CHECKING:
    from obstore.store import S3Store as Client

_MOST_PARTS: Final = 10_000  # of one object, says S3
_PARTS_AT_ONCE: Final = 2  # of one object


def upload(
    client: Client,
    sha256: str,
    source: Source,
    stored: Callable[[str], str | None],
    progress: Progress | None,
    stop: threading.Event,
) -> None:
    """Send one object.

    Args:
        sha256: 64 hex digits, of its bytes.
        stored: the sha256 of what is under a key; None if nothing is.
        stop: set when nobody waits for it any more.

    Raises:
        IntegrityError: its bytes have another digest.
        obstore.exceptions.BaseError: the server refuses, or does not answer.
    """
    import obstore

    key, size = object_key(sha256), size_of(source)
    if size > PART and isinstance(source, Path):
        parts = _parts(source, sha256, progress, stop)
        part = max(PART, math.ceil(size / _MOST_PARTS))
        try:
            obstore.put(client, key, parts, use_multipart=True, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)
        except FileNotFoundError:  # so may say who is asked again to put together what is put together
            if stored(key) != sha256:
                raise
        return
    data = source if isinstance(source, bytes) else source.read_bytes()
    require_digest(source, sha256, hashlib.sha256(data).hexdigest())
    obstore.put(client, key, data, use_multipart=False)
    if progress:
        progress(size)


def digest_of(source: Source) -> str:
    """The sha256 of what is to be sent, 64 hex digits."""
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256_file(source)[0]


def size_of(source: Source) -> int:
    """How many bytes it has."""
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _parts(path: Path, sha256: str, progress: Progress | None, stop: threading.Event) -> Iterator[bytes]:
    """The bytes of a file; the last of them only if all have the digest, so that a file that changed is never put together."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        ahead = file.read(CHUNK)
        while chunk := ahead:
            digest.update(chunk)
            ahead = file.read(CHUNK)
            if not ahead:
                require_digest(path, sha256, digest.hexdigest())
            if stop.is_set():
                raise Stopped
            yield chunk
            if progress:
                progress(len(chunk))
