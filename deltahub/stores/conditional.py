"""A write to a bucket on the condition that a document is still the one that was read.

The condition is `If-Match` with its ETag, or `If-None-Match: *` if there was none. obstore repeats what can be repeated blindly; a
conditional write whose answer was lost is looked at before it is repeated, for it may have been carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from deltahub.errors import ConflictError, StorageError
from deltahub.stores.s3_errors import lost, repeated, s3_errors

if TYPE_CHECKING:
    from obstore.store import S3Store as Client

    from deltahub.stores.bucket import Bucket

_TRIES: Final = 3  # of a write whose answer is lost


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
        expected: the ETag that it must have; None if there must be none yet.
        read_tagged: the bytes under a key and their ETag; None if there are none.

    Raises:
        ConflictError: it is another one.
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
        found = read_tagged(key)  # by now the server answers again, or this says that it does not
        if unsure and found and found[0] == data:  # an earlier try was carried out
            return found[1]
        if (found[1] if found else None) != expected:
            raise ConflictError(key, expected, found[1] if found else None)
    msg = f"{doing} failed in {bucket.url} (a write whose condition holds is refused). Repeat it; nothing was written."
    raise StorageError(msg)
