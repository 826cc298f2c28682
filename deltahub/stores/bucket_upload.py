"""Uploads to a bucket: small objects in one request, large ones in parts, all only with the announced digest.

A conditional write succeeds only if the document has not changed since it was read. The condition is `If-Match` with its ETag, or
`If-None-Match: *` if there was none; in Google Cloud Storage `x-goog-if-generation-match`. obstore repeats idempotent requests; after the
answer of a conditional write was lost, the document is read before a retry, as the write may have been done.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deltahub.errors import ConflictError, StorageError
from deltahub.files.atomic import CHUNK, sha256_file
from deltahub.stores.base import Progress, Source, object_key, require_digest
from deltahub.stores.bucket import PART
from deltahub.stores.bucket_errors import bucket_errors, is_unanswered, was_retried
from deltahub.stores.retry import S3_ATTEMPTS
from deltahub.stores.threads import Stopped

if TYPE_CHECKING:
    from deltahub.stores.bucket import Bucket
    from deltahub.stores.bucket_clients import Client


def conditional_put(
    client: Client,
    bucket: Bucket,
    key: str,
    data: bytes,
    expected: str | None,
    read_tagged: Callable[[str], tuple[bytes, str] | None],
) -> str:
    """Replace a document, and return its new ETag, or generation in Google Cloud Storage.

    Args:
        expected: the ETag that it must have; None if it must not exist yet.
        read_tagged: returns the bytes under a key and their ETag; None if the key does not exist.

    Raises:
        ConflictError: the document has another ETag.
        StorageError: the server refuses, or does not answer.
    """
    import obstore  # late: no other store needs it
    from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

    tag = bucket.service.tag
    mode: Any = "create" if expected is None else {tag: expected}
    doing, unsure = "Updating a delta's record", False
    for last in [False] * (S3_ATTEMPTS - 1) + [True]:
        with bucket_errors(doing, bucket):
            try:
                return obstore.put(client, key, data, mode=mode)[tag] or ""
            except (AlreadyExistsError, PreconditionError) as error:
                unsure = unsure or was_retried(error)
            except GenericError as error:
                if last or not is_unanswered(error):
                    raise
                unsure = True
        current = read_tagged(key)  # raises if the server still does not answer
        if unsure and current and current[0] == data:  # an earlier try succeeded
            return current[1]
        if (current[1] if current else None) != expected:
            raise ConflictError(key, expected, current[1] if current else None)
    msg = f"{doing} failed in {bucket.url} (a write whose condition holds is refused). Repeat it; nothing was written."
    raise StorageError(msg)


_MOST_PARTS: Final = 10_000  # of an object, a limit of S3
_PARTS_AT_ONCE: Final = 2  # of an object


def upload(
    client: Client,
    sha256: str,
    source: Source,
    stored: Callable[[str], str | None],
    progress: Progress | None,
    stop: threading.Event,
) -> None:
    """Upload one object.

    Args:
        sha256: the sha256 of its bytes, 64 hex digits.
        stored: returns the sha256 of the bytes under a key; None if the key does not exist.
        stop: set when the result is no longer needed.

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
        except FileNotFoundError:  # a retried completion of a completed upload may answer so
            if stored(key) != sha256:
                raise
        return
    data = source if isinstance(source, bytes) else source.read_bytes()
    require_digest(source, sha256, hashlib.sha256(data).hexdigest())
    obstore.put(client, key, data, use_multipart=False)
    if progress:
        progress(size)


def digest_of(source: Source) -> str:
    """Return the sha256 of the bytes to send, 64 hex digits."""
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256_file(source)[0]


def size_of(source: Source) -> int:
    """Return the number of bytes to send."""
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _parts(path: Path, sha256: str, progress: Progress | None, stop: threading.Event) -> Iterator[bytes]:
    """Iterate over the bytes of a file; the last chunk only if all have the digest, so that a changed file is never completed."""
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
