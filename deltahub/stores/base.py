"""The Store protocol.

Keys are relative paths of plain ASCII with "/" between parts. A store keeps two kinds of things:

- objects, `objects/sha256/<2>/<62>`, under the digest of their bytes, written once by `create` and never changed;
- documents, `refs/...`, replaced as a whole by `swap`, a compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deltahub.errors import ConflictError, IntegrityError, StorageError

Source = Path | bytes
Progress = Callable[[int], None]  # called with the number of bytes that were just moved

Swapped = str | ConflictError | StorageError  # the new etag, or why there is none


@dataclass(frozen=True)
class Swap:
    """One of several documents that are replaced together.

    Attributes:
        key: of the document.
        data: its new bytes.
        expected: as `Store.swap` takes it.
    """

    key: str
    data: bytes
    expected: str | None


def object_key(sha256: str) -> str:
    """The key of an object by its sha256, 64 hex digits."""
    return f"objects/sha256/{sha256[:2]}/{sha256[2:]}"


def require_digest(source: Source, expected: str, found: str) -> None:
    """Check that what is about to be stored is what was announced.

    Args:
        expected: its sha256, 64 hex digits, as it was announced.
        found: the same of its bytes.

    Raises:
        IntegrityError: they differ.
    """
    if found != expected:
        what = str(source) if isinstance(source, Path) else "An object"
        raise IntegrityError(
            what, f"sha256:{expected}", f"sha256:{found}", "It changed while it was published; repeat."
        )


def require_size(store: Store, key: str, size: int | None) -> None:
    """Check that there are as many bytes under a key as there must be, before they are read.

    Raises:
        NotFoundError: there are none.
        IntegrityError: there are more or fewer.
    """
    if size is not None and (found := store.size(key)) != size:
        raise IntegrityError(key, f"{size} bytes", f"{found} bytes")


class Store(Protocol):
    """Where a registry keeps its bytes."""

    @property
    def url(self) -> str:
        """Where the store is, for people."""
        ...

    @property
    def at_once(self) -> int:
        """How many requests at the same time make sense: 1 where nobody waits for an answer."""
        ...

    def read(self, key: str) -> bytes:
        """The bytes under a key.

        Raises:
            NotFoundError: there are none.
        """
        ...

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """The bytes under a key and their etag, as `swap` expects it; None if there are none."""
        ...

    def size(self, key: str) -> int:
        """How many bytes are under a key.

        Raises:
            NotFoundError: there are none.
        """
        ...

    def chunks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes under a key piece by piece, about `CHUNK` at a time, so that any size is read in little memory.

        Args:
            start: the first byte.
            end: the byte after the last, not beyond what is there; None for all that is there.

        Raises:
            NotFoundError: there are none; raised before the first piece.
        """
        ...

    def fetch(self, key: str, into: Path, progress: Progress | None = None, size: int | None = None) -> str:
        """Copy the bytes under a key to a new file.

        Args:
            size: how many there must be, if that is known; others are not copied.

        Returns:
            The sha256 of what was copied, 64 hex digits.

        Raises:
            NotFoundError: there are none.
            IntegrityError: there are more or fewer than `size`. Nothing was copied.
        """
        ...

    def create(self, sources: Mapping[str, Source], progress: Progress | None = None) -> None:
        """Store objects; on return all of them are durable.

        An object that is there already keeps its bytes and counts as new; a damaged one is written again.

        Args:
            sources: bytes, or the file that holds them, by their sha256 (64 hex digits).

        Raises:
            IntegrityError: bytes do not have the digest given. Nothing was stored.
            StorageError: the store is full, not writable or out of reach. Whatever was stored is whole.
        """
        ...

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace a document if it is still the one that was read; on return it is durable.

        Args:
            expected: the etag that the key has now; None if it must not exist yet.

        Returns:
            The new etag.

        Raises:
            ConflictError: the key holds something else. Nothing was written.
            StorageError: the store is full, not writable or out of reach, or knows no compare-and-swap.
        """
        ...

    def swap_all(self, swaps: Sequence[Swap]) -> list[Swapped]:
        """Replace many documents, each as `swap` does it; on return those that were replaced are durable.

        Args:
            swaps: each of another key.

        Returns:
            For each its new etag, or the error that kept it as it was; the others are replaced all the same.

        Raises:
            StorageError: the store failed as a whole. Each document is the old one or the new one.
        """
        ...

    def keys(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Every key that starts with `prefix`, and a stamp that changes whenever its bytes do."""
        ...

    def children(self, folder: str) -> list[str]:
        """What is directly in a folder: the names of keys, and those of folders with a "/" at their ends; in any order.

        Args:
            folder: with a "/" at its end, such as ``"refs/"``; one that is not there has no children.
        """
        ...

    def folder_stamp(self, folder: str) -> str | None:
        """A stamp that changes whenever a key directly in a folder is created, replaced or deleted.

        It may take the clock of the store to move on: a stamp says nothing of changes made while it was new. None where there
        is no such stamp.
        """
        ...

    def settle(self, keys: Iterable[str]) -> None:
        """Make durable what was found under keys.

        Whoever wrote it may have been killed before it was; who builds on it and says that all is done calls this first.

        Raises:
            StorageError: it cannot be made durable.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a key; a missing one is fine."""
        ...

    def spend_reserve(self) -> bool:
        """Give up a piece of the space that is set aside for freeing a store that is full: see `deltahub.reserve`.

        Returns:
            Whether there was one.
        """
        ...
