"""Conditional writes to a bucket, which succeed only if the document has not changed since it was read.

The condition is `If-Match` with its ETag, or `If-None-Match: *` if there was none. obstore repeats idempotent requests;
after the answer of a conditional write was lost, the document is read before a retry, as the write may have been done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from deltahub.errors import ConflictError, StorageError
from deltahub.stores.s3_errors import lost, repeated, s3_errors

if TYPE_CHECKING:
    from obstore.store import S3Store as Client

    from deltahub.stores.bucket import Bucket

_TRIES: Final = 3  # of a write whose answer was lost


def conditional_put(
    client: Client,
    bucket: Bucket,
    key: str,
    data: bytes,
    expected: str | None,
    read_tagged: Callable[[str], tuple[bytes, str] | None],
) -> str:
    """Replace a document, and return its new ETag.

    Args:
        expected: the ETag that it must have; None if it must not exist yet.
        read_tagged: returns the bytes under a key and their ETag; None if the key does not exist.

    Raises:
        ConflictError: the document has another ETag.
        StorageError: the server refuses, or does not answer.
    """
    import obstore  # late: no other store needs it
    from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

    mode: Any = "create" if expected is None else {"e_tag": expected}
    doing, unsure = "Updating a delta's record", False
    for last in [False] * (_TRIES - 1) + [True]:
        with s3_errors(doing, bucket):
            try:
                return obstore.put(client, key, data, mode=mode)["e_tag"] or ""
            except (AlreadyExistsError, PreconditionError) as error:
                unsure = unsure or repeated(error)
            except GenericError as error:
                if last or not lost(error):
                    raise
                unsure = True
        found = read_tagged(key)  # raises if the server still does not answer
        if unsure and found and found[0] == data:  # an earlier try succeeded
            return found[1]
        if (found[1] if found else None) != expected:
            raise ConflictError(key, expected, found[1] if found else None)
    msg = f"{doing} failed in {bucket.url} (a write whose condition holds is refused). Repeat it; nothing was written."
    raise StorageError(msg)
