"""The contents of a catalogue, as its refresh reads and writes them; one implementation for each kind of database."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from deltahub.registry.search.entry import CatalogueEntry
from deltahub.stores.folder_stamps import FolderStamp


class Contents(Protocol):
    """An open catalogue of one registry. The caller commits."""

    def commits(self) -> int:
        """Return a number that changes when another process writes the catalogue."""
        ...

    def lock(self) -> None:
        """Keep other processes from writing until the caller commits."""
        ...

    def folders(self) -> dict[str, FolderStamp]:
        """Return the state of each folder at its last listing, for stores with folder stamps."""
        ...

    def set_folder(self, folder: str, state: FolderStamp | None) -> None:
        """Store the state of a folder; None forgets it."""
        ...

    def state(self) -> str | None:
        """Return what the reader of a journal stored last; None if nothing."""
        ...

    def set_state(self, value: str) -> None:
        """Store what the reader of a journal needs next time."""
        ...

    def stamps(self, folder: str) -> dict[str, str]:
        """Return the keys of the documents below a folder with their stamps; an empty stamp marks one that could not be read."""
        ...

    def count(self) -> int:
        """Return the number of documents."""
        ...

    def entries(self, keys: Collection[str] | None = None) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
        """Iterate over documents: key, stamp, and its `CatalogueEntry` as a dictionary, None if it has no delta.

        Args:
            keys: which; None for all. Missing ones are left out.
        """
        ...

    def forget(self, keys: Collection[str]) -> None:
        """Remove documents and their deltas; missing ones are fine."""
        ...

    def remember(self, key: str, stamp: str, entry: CatalogueEntry | None) -> None:
        """Add a document, which must not be there.

        Args:
            entry: its delta; None for a document without versions.
        """
        ...
