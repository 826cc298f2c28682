"""The names of a large namespace by their lower-case form, so that a new name is compared with one shard instead of all names.

    names/<namespace>/<00..ff>.json    a shard: the names whose lower-case form has this digest
    names/<namespace>.json             written last: the shards have all names

A writer adds a new name to its shard before it writes the document, so the table may hold a name without a document, but no document is
missing, except those of an older deltahub. It is derived from the documents: deleting `names/` loses nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, Self

from deltahub.errors import ConflictError, IntegrityError, StorageError, UnreachableError
from deltahub.files.documents import parse_stored, with_checksum
from deltahub.stores.base import Store, Swap
from deltahub.stores.retry import SwapRetry

NAMES: Final = "names/"
LARGE: Final = 1000  # names of a namespace from which it has a table
_SCHEMA: Final = "names.v1"


class NameTable:
    """The names of a namespace; use `open` or `build`.

    Args:
        store: the registry's store.
        namespace: as it is stored.
    """

    def __init__(self, store: Store, namespace: str) -> None:
        self._store, self._namespace = store, namespace

    @classmethod
    def open(cls, store: Store, namespace: str) -> Self | None:
        """Return the table of a namespace; None without one."""
        return cls(store, namespace) if _read(store, _flag(namespace))[0] is not None else None

    @classmethod
    def build(cls, store: Store, namespace: str, names: Iterable[str]) -> Self | None:
        """Make the table of a namespace; None where the store refuses it.

        Args:
            names: all names in it.
        """
        table, shards = cls(store, namespace), defaultdict[str, dict[str, str]](dict)
        for name in names:
            shards[table._shard(name)][name.lower()] = name
        try:
            read = {key: _read(store, key) for key in shards}
            swaps = [
                Swap(key, _written({**names, **(read[key][0] or {})}), read[key][1]) for key, names in shards.items()
            ]
            if any(not isinstance(written, str) for written in store.swap_all(swaps)):
                return None  # the next writer tries again
            with contextlib.suppress(ConflictError):  # another process made it too
                store.swap(_flag(namespace), _written({}), _read(store, _flag(namespace))[1])
        except UnreachableError:
            raise
        except StorageError:
            return None
        return table

    def find(self, name: str) -> str | None:
        """Return the stored name that equals a name but for upper and lower case; None if there is none.

        Raises:
            IntegrityError: the shard is damaged.
        """
        return self._names(self._shard(name))[0].get(name.lower())

    def add(self, name: str) -> None:
        """Add a name, or replace the name that equals it but for upper and lower case.

        Raises:
            IntegrityError: the shard is damaged.
        """
        key, retry = self._shard(name), SwapRetry()
        while True:
            names, etag = self._names(key)
            if names.get(name.lower()) == name:
                return
            with retry:
                self._store.swap(key, _written({**names, name.lower(): name}), etag)
                return

    def _names(self, key: str) -> tuple[dict[str, str], str | None]:
        """Return the names in a shard, and its etag.

        Raises:
            IntegrityError: it is damaged.
        """
        names, etag = _read(self._store, key)
        if names is None and etag is not None:
            raise IntegrityError(key, "names of deltas", "other bytes", f"Delete {NAMES}: it is made anew.")
        return names or {}, etag

    def _shard(self, name: str) -> str:
        digest = hashlib.sha256(name.lower().encode()).hexdigest()
        return f"{NAMES}{self._namespace}/{digest[:2]}.json"


def _flag(namespace: str) -> str:
    return f"{NAMES}{namespace}.json"


def _written(names: dict[str, str]) -> bytes:
    return with_checksum({"schema_version": 1, "names": names})


def _read(store: Store, key: str) -> tuple[dict[str, str] | None, str | None]:
    """Return a document and its etag; None for a missing or damaged one."""
    stored = store.read_tagged(key)
    if stored is None:
        return None, None
    document, wrong = parse_stored(stored[0], _SCHEMA)
    return (None if wrong else document["names"]), stored[1]
