"""The Store protocol.

Keys are relative paths of plain ASCII with "/" between parts. A store keeps two kinds of things:

- objects, `objects/sha256/<2>/<62>`, under the digest of their bytes, written once by `create` and never changed;
- documents, `refs/...`, replaced as a whole by `swap`, a compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from deltahub.errors import IntegrityError

Source = Path | bytes
Progress = Callable[[int], None]  # called with the number of bytes that were just moved


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


class Store(Protocol):
    """Where a registry keeps its bytes."""

    @property
    def url(self) -> str:
        """Where the store is, for people."""
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

    def fetch(self, key: str, into: Path, progress: Progress | None = None) -> str:
        """Copy the bytes under a key to a new file.

        Returns:
            The sha256 of what was copied, 64 hex digits.

        Raises:
            NotFoundError: there are none.
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

    def keys(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Every key that starts with `prefix`, and a stamp that changes whenever its bytes do."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key; a missing one is fine."""
        ...
