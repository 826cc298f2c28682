"""A store in a bucket of a service with conditional writes (`services.py`).

An object appears whole or not at all (`bucket_upload.py`). A document is written on the condition that it has not changed since it was
read (`bucket_upload.py`), and only to a server that honours such conditions (`probe.py`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deltahub.errors import IntegrityError, NotFoundError, Outcome, outcome
from deltahub.files.atomic import CHUNK, WHOLE
from deltahub.renamed import renamed_in
from deltahub.stores.base import Method, Progress, Source, Swap, require_digest
from deltahub.stores.bucket import Bucket, Patience
from deltahub.stores.bucket_clients import connect
from deltahub.stores.bucket_errors import bucket_errors, is_unanswered
from deltahub.stores.bucket_upload import conditional_put, digest_of, size_of, upload
from deltahub.stores.probe import refuse_weak
from deltahub.stores.services import AZURE
from deltahub.stores.threads import interruptible, map_concurrently, run_concurrently

if TYPE_CHECKING:
    from obstore import GetOptions

    from deltahub.stores.bucket_clients import Client


_AT_ONCE: Final = 4  # concurrent transfers of large objects
_SMALL: Final = 1 << 20  # the most bytes of an object that counts as small
_REQUESTS: Final = 32  # concurrent requests, also for small objects


class BucketStore:
    """A store in a bucket.

    Args:
        bucket: its location and credentials.
        patience: timeouts and retries.
    """

    def __init__(self, bucket: Bucket, patience: Patience | None = None) -> None:
        self.bucket = bucket
        self.patience = patience or Patience()

    @property
    def url(self) -> str:
        """The bucket, the prefix and the server."""
        return self.bucket.url

    @property
    def at_once(self) -> int:
        """As many as hide the latency of the server."""
        return _REQUESTS

    # Methods get a client before they import obstore: without obstore, `connect` raises a helpful error.

    @functools.cached_property
    def _clients(self) -> tuple[Client, Client]:
        return connect(self.bucket, self.patience)

    @property
    def _reader(self) -> Client:
        return self._clients[0]

    @property
    def _writer(self) -> Client:
        return self._clients[1]

    # ----- reading -----

    def read(self, key: str) -> bytes:
        """Return the bytes under a key."""
        return interruptible(lambda: self._get(key))[0]

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Return the bytes under a key and their ETag, or their generation in Google Cloud Storage."""
        try:
            return interruptible(lambda: self._get(key))
        except NotFoundError:
            return None

    def _get(self, key: str) -> tuple[bytes, str]:
        client = self._reader
        import obstore

        try:
            with self._reading():
                response = obstore.get(client, key)
                if response.meta["size"] > WHOLE:
                    raise IntegrityError(key, f"{WHOLE} bytes at most", f"{response.meta['size']} bytes", "Remove it.")
                return response.bytes().to_bytes(), response.meta[self.bucket.service.tag] or ""
        except FileNotFoundError as error:
            raise NotFoundError(key, (self.url,)) from error

    def fetch(self, key: str, into: Path, progress: Progress | None = None, size: int | None = None) -> str:
        """Copy the bytes under a key to a new file; a broken connection is resumed."""
        stop = threading.Event()

        def copy() -> str:
            digest, chunks, remaining = hashlib.sha256(), self.chunks(key), size
            first = next(chunks, b"")  # a missing key creates no file
            with into.open("xb") as file:
                while first and not stop.is_set():
                    if remaining is not None and (remaining := remaining - len(first)) < 0:
                        into.unlink()
                        raise IntegrityError(key, f"{size} bytes", "more")
                    digest.update(first)
                    file.write(first)
                    if progress:
                        progress(len(first))
                    first = next(chunks, b"")
            return digest.hexdigest()

        try:
            return interruptible(copy)
        finally:
            stop.set()

    def size(self, key: str) -> int:
        """Return the number of bytes under a key."""

        def asked() -> int:
            client = self._reader
            with self._reading():
                return client.head(key)["size"]

        try:
            return interruptible(asked)
        except FileNotFoundError as error:
            raise NotFoundError(key, (self.url,)) from error

    def chunks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Iterate over the bytes under a key in chunks; a broken connection is resumed."""
        if start == end:
            return
        client = self._reader
        options: GetOptions = {}
        if end is not None:
            options = {"range": (start, end)}
        elif start:  # servers refuse a range of an empty object
            options = {"range": {"offset": start}}
        import obstore

        try:
            with self._reading():
                response = obstore.get(client, key, options=options)
                stream = iter(response.stream(min_chunk_size=CHUNK))
            while True:
                with self._reading():
                    chunk = next(stream, None)
                if chunk is None:
                    return
                yield chunk
        except FileNotFoundError as error:
            raise NotFoundError(key, (self.url,)) from error

    def keys(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Iterate over the keys that start with `prefix`, sorted; a key's stamp is its ETag, or else its modification time."""

        def listed() -> list[tuple[str, str]]:
            client = self._reader
            with self._reading():  # a server lists whole folders
                batches = client.list(prefix.rpartition("/")[0] or None, chunk_size=1000)
                return sorted(
                    (meta["path"], meta["e_tag"] or str(meta["last_modified"].timestamp()))
                    for batch in batches
                    for meta in batch
                )

        yield from ((key, stamp) for key, stamp in interruptible(listed) if key.startswith(prefix))

    def children(self, folder: str) -> list[str]:
        """Return the names of keys and folders directly in a folder; subfolders are not listed."""

        def listed() -> list[str]:
            client = self._reader
            import obstore

            with self._reading():
                listing = obstore.list_with_delimiter(client, folder)
            files = [meta["path"][len(folder) :] for meta in listing["objects"]]
            return files + [f"{path[len(folder) :].rstrip('/')}/" for path in listing["common_prefixes"]]

        return interruptible(listed)

    def folder_stamp(self, folder: str) -> str | None:
        """Return None: a bucket has no folders."""
        return None

    def _reading(self) -> Any:
        return bucket_errors("Reading the registry", self.bucket, "read")

    # ----- bytes that pass by this process -----

    @property
    def takes_uploads(self) -> bool:
        """Whether a plain PUT stores an object; Azure wants a header of its own, which clients do not send."""
        return self.bucket.service is not AZURE

    def presigned(self, key: str, method: Method, seconds: int) -> str:
        """Return a URL with which anyone may read or write a key for some time.

        Raises:
            StorageError: there are no credentials to sign with.
        """
        client = self._reader
        import obstore

        with bucket_errors("Signing an address", self.bucket):
            return obstore.sign(client, method, key, timedelta(seconds=seconds))

    def copy(self, key: str, to: str) -> None:
        """Copy the bytes under a key to another within the bucket."""

        def copied() -> None:
            client = self._writer
            import obstore

            with bucket_errors("Storing a delta", self.bucket):
                obstore.copy(client, key, to)

        refuse_weak(self._writer, self.bucket)
        try:
            interruptible(copied)
        except FileNotFoundError as error:
            raise NotFoundError(key, (self.url,)) from error

    # ----- writing -----

    def create(self, sources: Mapping[str, Source], progress: Progress | None = None) -> None:
        """Store objects, several at once; an existing one is sent again, which repairs it and makes it count as new."""
        for sha256, source in sources.items():
            require_digest(source, sha256, digest_of(source))
        refuse_weak(self._writer, self.bucket)

        def send(item: tuple[str, Source], stop: threading.Event) -> None:
            client = self._writer
            with bucket_errors("Storing a delta", self.bucket):
                upload(client, *item, self._stored, progress, stop)

        small = {sha256 for sha256, source in sources.items() if size_of(source) <= _SMALL}
        run_concurrently(send, [item for item in sources.items() if item[0] in small], _REQUESTS)
        run_concurrently(send, [item for item in sources.items() if item[0] not in small], _AT_ONCE)

    def _stored(self, key: str) -> str | None:
        digest = hashlib.sha256()
        try:
            for chunk in self.chunks(key):
                digest.update(chunk)
        except NotFoundError:
            return None
        return digest.hexdigest()

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace a document by a conditional write."""
        refuse_weak(self._writer, self.bucket)
        return interruptible(lambda: self._swap(key, data, expected))

    def _swap(self, key: str, data: bytes, expected: str | None) -> str:
        return conditional_put(self._writer, self.bucket, key, data, expected, self.read_tagged)

    def swap_all(self, swaps: Sequence[Swap]) -> list[Outcome[str]]:
        """Replace many documents by conditional writes, several at once."""
        refuse_weak(self._writer, self.bucket)
        return list(
            map_concurrently(
                lambda swap: outcome(functools.partial(self._swap, swap.key, swap.data, swap.expected)),
                swaps,
                _REQUESTS,
            )
        )

    def settle(self, keys: Iterable[str]) -> None:
        """Do nothing: an acknowledged write is durable, and the server shows no others."""

    def delete(self, key: str) -> None:
        """Remove a key."""
        interruptible(lambda: self._delete(key))

    def spend_reserve(self) -> bool:
        """Return False: no space is reserved, as a bucket is never full."""
        return False

    def _delete(self, key: str) -> None:
        client = self._writer
        import obstore
        from obstore.exceptions import GenericError

        with contextlib.suppress(FileNotFoundError), bucket_errors("Removing from the registry", self.bucket):
            try:
                obstore.delete(client, key)
            except GenericError as error:
                if not is_unanswered(error):
                    raise
                obstore.delete(client, key)


__getattr__ = renamed_in(__name__, {"S3Store": "BucketStore"})
