"""A probe for servers that accept conditional writes and ignore the condition.

On such a server, of two concurrent pushes one would overwrite the other, and both would report success. The server is probed
before the first write, with one small object, removed afterwards.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any, Final

from deltahub.errors import StorageError
from deltahub.stores.bucket_errors import bucket_errors, code_of, is_unanswered, status_of
from deltahub.stores.retry import S3_ATTEMPTS
from deltahub.stores.threads import interruptible

if TYPE_CHECKING:
    from deltahub.stores.bucket import Bucket
    from deltahub.stores.bucket_clients import Client

PROBES: Final = "probe/"

_weaknesses: dict[
    tuple[str, str | None, str], str | None
] = {}  # by service, server and bucket, for the life of the process


def refuse_weak(client: Client, bucket: Bucket) -> None:
    """Refuse to write to a server without a compare-and-swap; each server is probed once.

    Raises:
        StorageError: it has none, is out of reach, or is not writable.
    """
    server = str(client.config.get("endpoint") or bucket.server)  # it may come from a profile
    place = (bucket.service.scheme, server, bucket.name)
    if place not in _weaknesses:
        with bucket_errors("Writing to the registry", bucket):
            _weaknesses[place] = interruptible(lambda: _weakness(client, bucket.service.tag))
    if reason := _weaknesses[place]:
        msg = (
            f"{bucket.url} {reason}: of two people who push at once, one would overwrite the other's work unseen. "
            "DeltaHub reads from it, but does not write to it. Use a server with conditional writes, such as AWS S3, "
            "Google Cloud Storage, Azure Blob Storage, Cloudflare R2, MinIO or SeaweedFS."
        )
        raise StorageError(msg)


def _weakness(client: Client, tag: str) -> str | None:
    """Return a clause on what a real compare-and-swap lacks on this server; None if it lacks nothing.

    Raises:
        obstore.exceptions.BaseError: the server is out of reach or not writable.
    """
    from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError  # late: no other store needs it

    for last in [False] * (S3_ATTEMPTS - 1) + [True]:
        try:
            return _probe_once(client, tag, f"{PROBES}{uuid.uuid4().hex}")
        except (AlreadyExistsError, PreconditionError):
            # The condition held. A request that was retried after a lost answer looks the same, so the probe starts anew.
            continue
        except GenericError as error:
            if status_of(error) == 501 or code_of(error) == "NotImplemented":
                return "does not know conditional writes"
            if last or not is_unanswered(error):
                raise
    return "refuses a write whose condition holds"


def _probe_once(client: Client, tag: str, key: str) -> str | None:
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    def put(data: bytes, mode: Any) -> Any:
        return dict(obstore.put(client, key, data, mode=mode))[tag]

    first_tag = put(b"1", "create")
    try:
        if not first_tag:
            return f"gives no {'ETags' if tag == 'e_tag' else 'generations'}"
        with contextlib.suppress(AlreadyExistsError):
            put(b"2", "create")
            return "ignores If-None-Match"
        put(b"3", {tag: first_tag})
        with contextlib.suppress(PreconditionError):
            put(b"4", {tag: first_tag})
            return "ignores If-Match"
        return None
    finally:
        with contextlib.suppress(Exception):  # a leftover probe is harmless
            obstore.delete(client, key)
