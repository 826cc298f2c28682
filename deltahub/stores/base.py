"""The Store protocol.

Keys are relative paths of plain ASCII with "/" between parts. A store keeps two kinds of content:

- objects, `objects/sha256/<2>/<62>`, under the digest of their bytes, written once by `create` and never changed;
- documents, `refs/...`, replaced as a whole by `swap`, a compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from deltahub.errors import IntegrityError, Outcome
from deltahub.reference import Digest

Source = Path | bytes
Method = Literal["GET", "PUT"]
Progress = Callable[[int], None]  # called with the number of bytes just transferred


@dataclass(frozen=True)
class Swap:
    """One of several documents to replace together.

    Attributes:
        key: the key of the document.
        data: its new bytes.
        expected: see `Store.swap`.
    """

    key: str
    data: bytes
    expected: str | None


def object_key(sha256: str) -> str:
    """Return the key of an object by its sha256, 64 hex digits."""
    return f"objects/sha256/{sha256[:2]}/{sha256[2:]}"


def require_digest(source: Source, expected: str, actual: str) -> None:
    """Check that the bytes to store have the announced digest.

    Args:
        expected: the announced sha256, 64 hex digits.
        actual: the sha256 of the bytes.

    Raises:
        IntegrityError: they differ.
    """
    if actual != expected:
        name = str(source) if isinstance(source, Path) else "An object"
        raise IntegrityError(
            name, Digest.of_hex(expected), Digest.of_hex(actual), "It changed while it was published; repeat."
        )


def require_size(store: Store, key: str, size: int | None) -> None:
    """Check the size of the bytes under a key before they are read.

    Raises:
        NotFoundError: the key does not exist.
        IntegrityError: there are more or fewer bytes.
    """
    if size is not None and (actual := store.size(key)) != size:
        raise IntegrityError(key, f"{size} bytes", f"{actual} bytes")


class Store(Protocol):
    """The storage of a registry's bytes."""

    @property
    def url(self) -> str:
        """The location of the store, for people."""
        ...

    @property
    def at_once(self) -> int:
        """How many concurrent requests are useful; 1 for a store without latency."""
        ...

    def read(self, key: str) -> bytes:
        """Return the bytes under a key.

        Raises:
            NotFoundError: the key does not exist.
        """
        ...

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Return the bytes under a key and their etag for `swap`; None if the key does not exist."""
        ...

    def size(self, key: str) -> int:
        """Return the number of bytes under a key.

        Raises:
            NotFoundError: the key does not exist.
        """
        ...

    def chunks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Iterate over the bytes under a key in chunks of about `CHUNK`, so that any size is read in little memory.

        Args:
            start: the first byte.
            end: the byte after the last, at most the size; None for all bytes.

        Raises:
            NotFoundError: the key does not exist; raised before the first chunk.
        """
        ...

    def fetch(self, key: str, into: Path, progress: Progress | None = None, size: int | None = None) -> str:
        """Copy the bytes under a key to a new file.

        Args:
            size: the expected number of bytes, if known; any other number is not copied.

        Returns:
            The sha256 of the copy, 64 hex digits.

        Raises:
            NotFoundError: the key does not exist.
            IntegrityError: there are more or fewer bytes than `size`. Nothing was copied.
        """
        ...

    def create(self, sources: Mapping[str, Source], progress: Progress | None = None) -> None:
        """Store objects; on return all are durable.

        An existing object keeps its bytes and counts as new; a damaged one is written again.

        Args:
            sources: sha256 (64 hex digits) to the bytes, or to the file with them.

        Raises:
            IntegrityError: bytes do not match their digest. Nothing was stored.
            StorageError: the store is full, not writable or out of reach. Every object that was stored is whole.
        """
        ...

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace a document if it has not changed since it was read; on return it is durable.

        Args:
            expected: the key's current etag; None if the key must not exist yet.

        Returns:
            The new etag.

        Raises:
            ConflictError: the key has another etag. Nothing was written.
            StorageError: the store is full, not writable or out of reach, or has no compare-and-swap.
        """
        ...

    def swap_all(self, swaps: Sequence[Swap]) -> list[Outcome[str]]:
        """Replace many documents like `swap`; on return all replaced ones are durable.

        Args:
            swaps: the documents, each under another key.

        Returns:
            For each its new etag, or the error that kept it unchanged; an error does not stop the others.

        Raises:
            StorageError: the store failed as a whole. Each document is the old one or the new one.
        """
        ...

    def keys(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Iterate over the keys that start with `prefix`, each with a stamp that changes whenever its bytes do."""
        ...

    def children(self, folder: str) -> list[str]:
        """Return the names of the keys directly in a folder, and of its subfolders with a "/" at the end; in any order.

        Args:
            folder: with a "/" at its end, such as ``"refs/"``; a missing one has no children.
        """
        ...

    def folder_stamp(self, folder: str) -> str | None:
        """Return a stamp that changes whenever a key directly in a folder is created, replaced or deleted.

        Its resolution is that of the store's clock: a new stamp may miss changes of the same tick. None if the store has no such stamp.
        """
        ...

    def settle(self, keys: Iterable[str]) -> None:
        """Make the content found under keys durable.

        Its writer may have been killed before it was durable; call this before reporting success that relies on it.

        Raises:
            StorageError: it cannot be made durable.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a key; a missing one is fine."""
        ...

    def spend_reserve(self) -> bool:
        """Release a piece of the space reserved for freeing a full store: see `deltahub.files.reserve`.

        Returns:
            Whether there was one.
        """
        ...


@runtime_checkable
class DirectStore(Store, Protocol):
    """A store from which clients fetch bytes themselves, and to which they may send them, at signed URLs of its server."""

    @property
    def takes_uploads(self) -> bool:
        """Whether a plain PUT at a signed URL stores the body."""
        ...

    def presigned(self, key: str, method: Method, seconds: int) -> str:
        """Return a URL with which anyone may read (GET) or write (PUT) the bytes under a key for some seconds.

        Raises:
            StorageError: the store has no credentials to sign with.
        """
        ...

    def copy(self, key: str, to: str) -> None:
        """Copy the bytes under a key to another, whole or not at all, without fetching them.

        Raises:
            NotFoundError: the key does not exist.
            StorageError: the store is not writable or out of reach.
        """
        ...
