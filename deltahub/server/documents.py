"""Small documents of a hub, read and changed by compare-and-swap: webhooks, collections, access requests and likes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from deltahub.errors import IntegrityError
from deltahub.registry.hub_records import Kind
from deltahub.stores.base import Store
from deltahub.stores.retry import SwapRetry
from deltahub.stores.threads import map_concurrently

T = TypeVar("T")


class Documents(Generic[T]):
    """All documents of one kind.

    Args:
        store: holds them.
        kind: their prefix and schema.
        load: converts the content of a document to the value.
        dump: converts the value to the content.
    """

    def __init__(
        self, store: Store, kind: Kind, load: Callable[[dict[str, Any]], T], dump: Callable[[T], Mapping[str, Any]]
    ) -> None:
        self._store, self._kind, self._load, self._dump = store, kind, load, dump

    def find(self, name: str) -> T | None:
        """Return the document with a name, which may contain slashes; None if it does not exist.

        Raises:
            IntegrityError: it is damaged.
            StorageError: the store is unreachable.
        """
        record = self._kind.read(self._store, self._key(name))
        return self._load(record[0]) if record else None

    def all(self, folder: str = "") -> list[T]:
        """Return every document below a folder, sorted by name; a damaged one is skipped and logged.

        Args:
            folder: empty, or a path that ends with "/".
        """
        keys = [key for key, _ in self._store.keys(f"{self._kind.prefix}{folder}") if key.endswith(".json")]
        values = map_concurrently(self._listed, sorted(keys), self._store.at_once)
        return [value for value in values if value is not None]

    def change(self, name: str, change: Callable[[T | None], T]) -> T:
        """Change a document by compare-and-swap; a lost race is retried on the winner's document.

        Args:
            change: maps the current value, None if there is none, to the new one.
        """
        retry = SwapRetry()
        while True:
            record = self._kind.read(self._store, self._key(name))
            before = self._load(record[0]) if record else None
            value = change(before)
            if before is not None and value == before:
                return value
            with retry:
                self._kind.write(self._store, self._key(name), self._dump(value), record[1] if record else None)
                return value

    def delete(self, name: str) -> None:
        """Remove a document; a missing one is fine."""
        self._store.delete(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._kind.prefix}{name}.json"

    def _listed(self, key: str) -> T | None:
        try:
            record = self._kind.read(self._store, key)
        except IntegrityError as error:
            logging.getLogger("deltahub").warning("A document cannot be listed: %s", error)
            return None
        return self._load(record[0]) if record else None  # else it was deleted since the listing
