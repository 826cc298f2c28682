"""What a hub knows of a repository beside its versions: that it was created, by whom, and whether it is private.

The records lie in the registry's own store, under `hub/repos/`, so that every process of a hub sees the same. What was pushed straight to
the registry has none: it is public.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from deltahub.errors import ConflictError, IntegrityError
from deltahub.manifest import canonical_json
from deltahub.schema import parse, problem
from deltahub.server.watched import Watched
from deltahub.stores.base import Store

PREFIX: Final = "hub/repos/"
SCHEMA: Final = "repository.v1"
_ATTEMPTS: Final = 20


@dataclass(frozen=True)
class Record:
    """What is known of one repository.

    Attributes:
        created: when it was created, ISO 8601 in UTC.
        author: who created it.
        private: whether only those may see it whose token holds in its namespace.
    """

    created: str
    author: str
    private: bool = False

    def to_bytes(self) -> bytes:
        """The record as it is stored."""
        return canonical_json({"schema_version": 1, **asdict(self)})


class Records:
    """The records of all repositories of a hub.

    Args:
        store: of its registry.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched = Watched(store, PREFIX, lambda key, data: _read(data, _path(key)))
        self._hidden: tuple[Mapping[str, Record], frozenset[str]] = ({}, frozenset())

    def find(self, path: str) -> Record | None:
        """The record of a repository, ``"namespace/name"``; None if there is none."""
        return self._tagged(path)[0]

    def _tagged(self, path: str) -> tuple[Record | None, str | None]:
        found = self._store.read_tagged(_key(path))
        return (None, None) if found is None else (_read(found[0], path), found[1])

    def all(self) -> dict[str, Record]:
        """Every record by its repository; only those that changed since the last time are read."""
        return {_path(key): record for key, record in self._watched.current().items()}

    def private(self) -> frozenset[str]:
        """The names of all private repositories."""
        current = self._watched.current()
        if self._hidden[0] is not current:
            self._hidden = (current, frozenset(_path(key) for key, record in current.items() if record.private))
        return self._hidden[1]

    def names(self) -> list[str]:
        """Every repository that has a record, ``"namespace/name"``, sorted."""
        return sorted(_path(key) for key, _ in self._store.keys(PREFIX) if key.endswith(".json"))

    def change(self, path: str, change: Callable[[Record | None], Record]) -> Record:
        """Swap a record for a changed one; a lost race is run again on what the winner wrote.

        Args:
            change: makes the new record from the current one, None if there is none.
        """
        for attempt in range(_ATTEMPTS):
            record, etag = self._tagged(path)
            changed = change(record)
            if changed == record:
                return changed
            try:
                self._store.swap(_key(path), changed.to_bytes(), etag)
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            return changed
        raise AssertionError("unreachable")

    def delete(self, path: str) -> None:
        """Remove a record; a missing one is fine."""
        self._store.delete(_key(path))


def _key(path: str) -> str:
    return f"{PREFIX}{path}.json"


def _path(key: str) -> str:
    return key[len(PREFIX) : -len(".json")]


def _read(data: bytes, path: str) -> Record:
    try:
        document = parse(data)
        wrong = problem(document, SCHEMA)
    except ValueError as error:
        wrong = str(error)
    if wrong:
        remedy = f"Write {_key(path)} again, or delete it: then the repository is public."
        raise IntegrityError(f"The record of the repository {path}", "when it was created, by whom", wrong, remedy)
    return Record(document["created"], document["author"], document["private"])
